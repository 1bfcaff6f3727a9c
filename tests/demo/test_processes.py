"""The demo's children: none is left behind, and one that ends by itself is noticed. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from pilotfish.demo import processes as module
from pilotfish.demo.processes import DemoError, Processes, clean_environment, tail, taken
from tests.support.processes import eventually, loopback

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)


def wait_for(log: Path, text: str) -> None:
    eventually(lambda: text in log.read_text(), text)


def test_stop_ends_every_child_and_kills_the_one_that_will_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.5)
    children = Processes(tmp_path)
    polite = children.start("polite", SLEEP, os.environ)
    stubborn = children.start("stubborn", STUBBORN, os.environ)
    wait_for(tmp_path / "stubborn.log", "up")
    assert children.stop() == ["stubborn"]
    assert (polite.returncode, stubborn.returncode) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_child_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    children = Processes(tmp_path)
    children.start("bad", (sys.executable, "-c", "raise SystemExit('no such thing')"), os.environ).wait()
    with pytest.raises(DemoError, match="bad ended by itself, with exit status 1") as caught:
        children.check()
    assert caught.value.log is not None
    assert tail(caught.value.log) == "no such thing"


def test_a_child_killed_on_purpose_is_not_reported(tmp_path: Path) -> None:
    children = Processes(tmp_path)
    children.start("victim", SLEEP, os.environ)
    children.kill("victim")
    children.check()


def test_a_bound_port_is_taken_and_others_are_free() -> None:
    with socket.create_server((loopback(), 0)) as holder:
        held, free = holder.getsockname(), (loopback(), 8080)
        assert taken([held, free]) == [(*held, "is taken")]


def test_an_address_that_is_not_this_machines_is_named_with_the_reason() -> None:
    ((address, port, reason),) = taken([("192.0.2.1", 8080)])
    assert (address, port) == ("192.0.2.1", 8080)
    assert reason == "cannot be bound: Cannot assign requested address"


def test_the_users_own_proxies_do_not_reach_the_demos_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "somewhere")
    assert not [name for name in clean_environment() if name.lower().endswith("_proxy")]
