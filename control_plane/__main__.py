"""`python -m control_plane`, and what the `pilotfish control-plane` command calls."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from control_plane.app import StartError, run
from control_plane.ca.store import CaError
from control_plane.settings import parse_arguments


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs a control plane until it is told to stop. Returns the exit status."""
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments, prog)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        run(settings)
    except (CaError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
