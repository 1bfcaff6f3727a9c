"""`python -m pilotfish`: the `pilotfish` command with a chosen interpreter."""

from pilotfish.cli import main

main()
