"""`python -m pilotfish`: the `pilotfish` command with a chosen interpreter. Containers start here."""

import os
import signal
import sys

if os.getpid() == 1:
    # The kernel keeps signals without a handler from PID 1: have one before anything slow is imported.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

from pilotfish.cli import main

main()
