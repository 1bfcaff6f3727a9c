"""Runs a program as PID 1 of a container: `pid1.py PROGRAM [ARGUMENT...]`, ended by SIGTERM.

The kernel keeps signals without a handler from PID 1; the example applications set none of their own.
"""

import os
import runpy
import signal
import sys

signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
