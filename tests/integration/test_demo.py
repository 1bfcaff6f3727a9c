"""`pilotfish demo` for real: the whole mesh, the kills, the verdict, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish.demo.processes import taken
from pilotfish.demo.topology import wanted_addresses

PATIENT = """
from pilotfish.demo import facts, show
from pilotfish.cli import main
facts.REROUTE_LIMIT = show.REROUTE_SECONDS = 3.0
show.KILL_SECONDS = 3.0
main()
"""
"""The command, but traffic has ten times as long as it usually takes to follow a saved file."""
LIMIT = 150.0
"""Seconds; it takes 25 when nothing else runs."""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Its own temporary files go to `folder`, so that what it leaves there can be seen."""
    if busy := taken(wanted_addresses()):
        pytest.skip(f"the demo's addresses are in use: {busy[0]}")
    return subprocess.Popen(
        [sys.executable, "-c", PATIENT, "demo", *options],
        env=os.environ | {"TMPDIR": str(folder), "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(demo: subprocess.Popen[str], seconds: float) -> str:
    """Its output; a demo that does not end is stopped in its own way first, for the sake of its children."""
    try:
        return demo.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        demo.terminate()
        output = demo.communicate(timeout=60)[0]
        raise AssertionError(f"the demo did not end within {seconds} s:\n{output}") from None


@pytest.mark.timeout(2 * LIMIT)
def test_the_demo_shows_a_mesh_that_loses_no_request_and_cleans_up(tmp_path: Path) -> None:
    demo = start(tmp_path)
    output = finish(demo, LIMIT)
    assert demo.returncode == 0, output
    for text in (
        "spiffe://cluster.local/ns/shop/sa/orders",
        "✓ calm traffic: every request succeeds",
        "✓ running traffic follows a saved file in under 3 s",
        "✓ users-2 killed, its sidecar and its application: no GET failed",
        "✓ orders-1 killed, only its application: no GET failed",
        "✓ a request is one trace through all its sidecars: 8 spans in 3 services",
        "shop/greeter/0",
        "facts held.",
    ):
        assert text in output
    assert "✗" not in output
    assert list(tmp_path.iterdir()) == []
    assert taken(wanted_addresses()) == []


def test_an_interrupted_demo_stops_everything_that_it_started(tmp_path: Path) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    seen = ""
    while "control plane is ready" not in seen:
        line = demo.stdout.readline()
        assert line, seen
        seen += line
    demo.send_signal(signal.SIGINT)
    output = finish(demo, 60)
    assert "Interrupted." in output
    assert demo.returncode == 130
    assert taken(wanted_addresses()) == []
    assert list(tmp_path.iterdir()) == []
