"""The `pilotfish` command: starts the parts of the mesh.

Each verb imports what it needs when it runs: a sidecar's process must not pay for the control plane.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

EXIT_CONFIG = 64
"""The configuration cannot be used (EX_USAGE of sysexits)."""
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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="Envoy v3 Bootstrap, YAML or JSON")
    source.add_argument(
        "--from-environment", action="store_true", help="in a pod: from the variables that the injector set"
    )
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
    add(
        "--buffer-limit",
        type=int,
        default=256,
        metavar="MIB",
        help="past so much buffered for all requests new ones are refused (default 256)",
    )
    add(
        "--header-limit",
        type=int,
        default=64,
        metavar="KIB",
        help="longest header section of a request or a response, on every hop (default 64)",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    given = parser.parse_args(arguments)
    config = given.config
    if given.from_environment:
        from pilotfish.pod_bootstrap import PodError, bootstrap_file

        try:
            config = bootstrap_file(os.environ)
        except PodError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_CONFIG
    return run_sidecar(
        Options(
            config,
            given.mode == "validate",
            given.http2_engine,
            given.drain_deadline,
            given.log_level,
            given.buffer_limit,
            given.header_limit,
            os.environ if given.from_environment else {},
        )
    )


def control_plane(arguments: Sequence[str]) -> int:
    """Watch configuration, issue identities, push xDS to every sidecar."""
    from control_plane.__main__ import main as control_plane_main

    return control_plane_main(arguments, prog="pilotfish control-plane")


def token(arguments: Sequence[str]) -> int:
    """Issue a join token: what a workload outside Kubernetes proves its service account with."""
    from control_plane.app import issue_token
    from control_plane.ca.store import CaError
    from control_plane.settings import DEFAULT_CA_DIR, parse_account, parse_duration

    parser = argparse.ArgumentParser(prog="pilotfish token", description=token.__doc__)
    add = parser.add_argument
    add("--service-account", required=True, metavar="NAMESPACE/ACCOUNT")
    add("--ca-dir", type=Path, default=DEFAULT_CA_DIR, help="of the control plane (default %(default)s)")
    add("--lifetime", default="1h", help="how long workloads may join with it (default 1h)")
    given = parser.parse_args(arguments)
    try:
        account = parse_account(given.service_account)
        print(issue_token(given.ca_dir, *account, parse_duration(given.lifetime)))
    except (CaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def bootstrap(arguments: Sequence[str]) -> int:
    """Print the bootstrap of one workload's sidecar."""
    import yaml

    from pilotfish.workload_bootstrap import Workload, bootstrap

    parser = argparse.ArgumentParser(
        prog="pilotfish bootstrap", description="Print the bootstrap of one workload's sidecar."
    )
    add = parser.add_argument
    add("--name", required=True, help="of this replica, for logs and metrics")
    add("--service-account", required=True, metavar="NAMESPACE/ACCOUNT")
    add("--address", required=True, help="the workload's own IP address, where the sidecar binds its ports")
    add("--control-plane", default="127.0.0.1:15010", metavar="HOST:PORT")
    add("--root", required=True, metavar="FILE", help="root.pem of the control plane's CA directory")
    add("--token-file", required=True, metavar="FILE", help="a join token (pilotfish token)")
    add(
        "--otlp",
        default="",
        metavar="HOST:PORT",
        help="OTLP/HTTP collector of traces, such as Jaeger's port 4318",
    )
    add("--trace-sampling", type=float, default=100.0, metavar="PERCENT")
    given = parser.parse_args(arguments)
    namespace, slash, account = given.service_account.partition("/")
    if not slash or not namespace or not account:
        parser.error(f"--service-account {given.service_account!r}: expected NAMESPACE/ACCOUNT")
    workload = Workload(
        name=given.name,
        namespace=namespace,
        service_account=account,
        address=given.address,
        token_file=given.token_file,
        root_file=given.root,
        control_plane=given.control_plane,
        otlp=given.otlp,
        trace_sampling=given.trace_sampling,
    )
    print(yaml.safe_dump(bootstrap(workload), sort_keys=False), end="")
    return 0


def inject(arguments: Sequence[str]) -> int:
    """Add the sidecar to the workloads of a Kubernetes manifest; print the result."""
    from pilotfish.inject import run_inject

    return run_inject(arguments)


def drain(arguments: Sequence[str]) -> int:
    """Send the clients of this pod's sidecar elsewhere and wait until they have gone (a preStop hook)."""
    from pilotfish.drain import run_drain

    return run_drain(arguments)


def wait(arguments: Sequence[str]) -> int:
    """Wait until this pod's sidecar takes traffic (a postStart hook)."""
    from pilotfish.drain import run_wait

    return run_wait(arguments)


def capture(arguments: Sequence[str]) -> int:
    """Redirect the connections of this pod to its sidecar (an init container)."""
    from pilotfish.capture.command import run_capture

    return run_capture(arguments)


def check(arguments: Sequence[str]) -> int:
    """Look at every part of the mesh in a cluster, and say what is wrong."""
    from pilotfish.operator.check import run_check

    return run_check(arguments)


def status(arguments: Sequence[str]) -> int:
    """Show each sidecar: its version, whether it has its configuration, how long its certificate lasts."""
    from pilotfish.operator.status import run_status

    return run_status(arguments)


def proxy_config(arguments: Sequence[str]) -> int:
    """Show what one sidecar has been told and is doing."""
    from pilotfish.operator.proxy_config import run_proxy_config

    return run_proxy_config(arguments)


def demo(arguments: Sequence[str]) -> int:
    """Run a whole mesh on this machine for half a minute and show what it does."""
    from pilotfish.demo.main import run_demo

    parser = argparse.ArgumentParser(prog="pilotfish demo", description=demo.__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="leave the mesh running until Ctrl-C, and print its addresses"
    )
    return run_demo(parser.parse_args(arguments).keep)


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "sidecar": (sidecar, "run the data plane beside one workload"),
    "control-plane": (control_plane, "watch configuration, issue identities, push xDS"),
    "token": (token, "issue a join token for a workload outside Kubernetes"),
    "bootstrap": (bootstrap, "print the bootstrap of one workload's sidecar"),
    "inject": (inject, "add the sidecar to the workloads of a Kubernetes manifest"),
    "drain": (drain, "send the clients of this pod's sidecar elsewhere, before it ends"),
    "wait": (wait, "wait until this pod's sidecar takes traffic"),
    "capture": (capture, "redirect the connections of this pod to its sidecar; check that; undo it"),
    "check": (check, "look at every part of the mesh in a cluster, and say what is wrong"),
    "status": (status, "show each sidecar: version, configuration, certificate"),
    "proxy-config": (proxy_config, "show what one sidecar has been told and is doing"),
    "demo": (demo, "run a whole mesh on this machine and show what it does"),
}
