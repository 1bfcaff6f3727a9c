"""SIGTERM to a sidecar that is process 1 of its namespace, at any moment of its start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.certs import make_ca

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"),
]


def environment(tmp_path: Path) -> dict[str, str]:
    """Of a pod whose control plane is not there, so that the sidecar is starting for as long as it lives."""
    (tmp_path / "token").write_text("x")
    return {
        "PATH": os.environ["PATH"],
        "POD_NAME": "users-1",
        "POD_NAMESPACE": "shop",
        "POD_IP": "127.0.0.1",
        "POD_SERVICE_ACCOUNT": "users",
        "PILOTFISH_CONTROL_PLANE": "127.0.0.1:1",
        "PILOTFISH_TOKEN_FILE": str(tmp_path / "token"),
        "PILOTFISH_ROOT_PEM": make_ca("root").certificate.public_bytes(Encoding.PEM).decode(),
    }


def process_1(unshare: int) -> int:
    """The process id, as it is seen from here, of the only child of `unshare`."""
    children = Path(f"/proc/{unshare}/task/{unshare}/children")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.005)
    raise AssertionError("unshare started nothing")


def wait_for_handler(pid: int) -> None:
    """Until the process has its handler, which Python alone cannot have before it has begun itself."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)
    raise AssertionError("process 1 handles no SIGTERM")


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6, 1.0, 2.0])
def test_sigterm_ends_process_1_promptly_while_it_starts(tmp_path: Path, seconds: float) -> None:
    # A network namespace of its own, because the ports are always the same.
    command = [
        *("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-c", 'ip link set lo up; exec "$@"', "sh"),
        *(sys.executable, "-P", "-m", "pilotfish", "sidecar", "--from-environment"),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(tmp_path), stderr=log, cwd="/")
        try:
            target = process_1(process.pid)
            wait_for_handler(target)
            time.sleep(seconds)
            assert process.poll() is None, (tmp_path / "log").read_text()
            os.kill(target, signal.SIGTERM)
            assert process.wait(timeout=15) in (0, 128 + signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
