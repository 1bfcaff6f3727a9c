"""The sidecar's process: reads the bootstrap, runs the application on uvloop, obeys signals from the start.

`pilotfish sidecar` ends here. Exit status: 0 after a drain, 64 when the configuration
cannot be used (before a port is bound), 1 when a port cannot be bound.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

EXIT_CONFIG = 64


@dataclass(frozen=True, slots=True)
class Options:
    config: Path
    validate: bool = False
    http2_engine: str = "pilotfish"
    drain_deadline: float = 30.0
    log_level: str = "info"
    buffer_limit: int = 256
    """MiB that all requests together may have buffered before new ones are turned away."""
    header_limit: int = 64
    """KiB of a header section, of requests and responses on every hop."""
    pod_environment: Mapping[str, str] = field(default_factory=dict)
    """The variables that the injector set, in a pod."""


def run_sidecar(options: Options) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit status."""
    # A process that is PID 1 ignores SIGTERM until it has a handler: have one before anything slow.
    signal.signal(signal.SIGTERM, _exit_early)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    from sidecar.bootstrap import load_bootstrap
    from sidecar.config.decode import ConfigError

    try:
        bootstrap = load_bootstrap(str(options.config))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    if options.validate:
        for path in bootstrap.without_effect:
            print(f"{options.config}: {path}: without effect")
        print(f"{options.config}: OK")
        return 0
    from sidecar.app import run
    from sidecar.pod import read_pod

    try:
        pod = read_pod(options.pod_environment)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return run(
        bootstrap,
        options.http2_engine,
        options.drain_deadline,
        options.buffer_limit << 20,
        options.header_limit << 10,
        pod,
    )


def _exit_early(number: int, frame: FrameType | None) -> None:
    """SIGTERM before the event loop runs: nothing was accepted yet, so nothing is lost."""
    sys.exit(0)
