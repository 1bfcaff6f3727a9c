"""The `pilotfish` command: starts the parts of the mesh.

Each verb imports what it needs when it runs: a sidecar's process must not pay for the control plane.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

DESCRIPTION = "A small service mesh: sidecars that do mTLS, retries, load balancing and tracing."


def main() -> None:
    """Ends the process with the verb's exit status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one verb; returns its exit status (2: the command line is wrong)."""
    # Every verb parses its own options: only the first word is looked at here.
    if arguments and arguments[0] in VERBS:
        return VERBS[arguments[0]][0](arguments[1:])
    parser = argparse.ArgumentParser(
        prog="pilotfish",
        description=DESCRIPTION,
        epilog=_verb_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pilotfish {version('pilotfish')}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB")
    parser.parse_args(arguments)
    parser.print_help()
    return 2


def _verb_list() -> str:
    width = max(map(len, VERBS))
    return "verbs:\n" + "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in VERBS.items())


def sidecar(arguments: Sequence[str]) -> int:
    """Run the data plane beside one workload."""
    from sidecar.main import Options, run_sidecar

    parser = argparse.ArgumentParser(prog="pilotfish sidecar", description=sidecar.__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="Envoy v3 Bootstrap, YAML or JSON")
    add("--mode", choices=("serve", "validate"), default="serve", help="validate: check the file and exit")
    add(
        "--http2-engine",
        choices=("pilotfish", "h2"),
        default="pilotfish",
        help="h2: the reference package, slower",
    )
    add(
        "--drain-deadline",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="longest wait for requests in flight after SIGTERM (default 30)",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    given = parser.parse_args(arguments)
    return run_sidecar(
        Options(
            given.config, given.mode == "validate", given.http2_engine, given.drain_deadline, given.log_level
        )
    )


def control_plane(arguments: Sequence[str]) -> int:
    """Watch configuration, issue identities, push xDS to every sidecar."""
    from control_plane.__main__ import main as control_plane_main

    return control_plane_main(arguments, prog="pilotfish control-plane")


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "sidecar": (sidecar, "run the data plane beside one workload"),
    "control-plane": (control_plane, "watch configuration, issue identities, push xDS"),
}
