"""What the kubelet runs in the sidecar's container: wait until it takes traffic, and drain it.

`pilotfish drain` is the preStop hook, `pilotfish wait` the postStart hook of the ordinary container. Both
talk to the sidecar's admin port. Imports little, because a pod's end waits for it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from mesh_api.names import ADMIN_PORT

INTERVAL = 0.25
"""Seconds between two looks."""
QUIET = 1.0
"""How long nobody must have been connected: clients that do not know yet may come."""
_TIMEOUT = 2.0


def run_drain(arguments: Sequence[str]) -> int:
    """The verb. 0 when all clients have gone, 1 when some were left or the sidecar does not answer."""
    given = _arguments("drain", "longest wait for clients to go (default 25)", 25.0, arguments)
    try:
        left = drain(given.admin, given.deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"error: sidecar at {given.admin}: {error}", file=sys.stderr)
        return 1
    if left:
        print(f"deadline passed: {left} inbound connections are left", file=sys.stderr)
    return 1 if left else 0


def run_wait(arguments: Sequence[str]) -> int:
    """The verb. 0 when the sidecar is ready, 1 when the deadline passed before."""
    given = _arguments("wait", "longest wait (default 300)", 300.0, arguments)
    reason = wait_ready(given.admin, given.deadline)
    if reason:
        print(f"error: sidecar at {given.admin} is not ready: {reason}", file=sys.stderr)
    return 1 if reason else 0


def drain(
    admin: str,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Starts draining, then waits until no inbound connection has been open for `QUIET` seconds, at most
    `deadline` seconds; returns how many are left. Raises OSError, HTTPException and ValueError."""
    began = clock()
    status, text = _ask(admin, "POST", "/drain")
    if status != 200:
        raise ValueError(f"POST /drain was answered with {status}: {text.strip()}")
    quiet_since: float | None = None
    while True:
        open_now = _inbound_connections(admin)
        now = clock()
        if open_now:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        if quiet_since is not None and now - quiet_since >= QUIET:
            return 0
        if now - began >= deadline:
            return open_now
        sleep(INTERVAL)


def wait_ready(
    admin: str,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> str:
    """Why the sidecar was not ready within `deadline` seconds; empty when it is."""
    end = clock() + deadline
    while True:
        try:
            status, text = _ask(admin, "GET", "/ready")
            if status == 200:
                return ""
        except (OSError, http.client.HTTPException) as error:
            text = str(error)
        if clock() >= end:
            return text.strip()
        sleep(INTERVAL)


def _inbound_connections(admin: str) -> int:
    status, text = _ask(admin, "GET", "/stats")
    if status != 200:
        raise ValueError(f"GET /stats was answered with {status}")
    listeners = json.loads(text)["listeners"]
    return sum(listener["connections_active"] for listener in listeners if listener["direction"] == "inbound")


def _ask(admin: str, method: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(admin, timeout=_TIMEOUT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _arguments(verb: str, text: str, deadline: float, arguments: Sequence[str]) -> argparse.Namespace:
    address = os.environ.get("POD_IP", "127.0.0.1")
    host = f"[{address}]" if ":" in address else address
    parser = argparse.ArgumentParser(prog=f"pilotfish {verb}")
    parser.add_argument("--admin", default=f"{host}:{ADMIN_PORT}", metavar="HOST:PORT", help="of the sidecar")
    parser.add_argument("--deadline", type=float, default=deadline, metavar="SECONDS", help=text)
    return parser.parse_args(arguments)
