"""A pod and another host as two network namespaces with IPv4 and IPv6, and sockets in them. Need root and ip.

A socket stays in the namespace where it was made: tests need no process there to send and to receive.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POD = {4: "198.18.78.2", 6: "fd78::2"}
PEER = {4: "198.18.78.1", 6: "fd78::1"}
"""Where the default routes of the pod lead."""
FAR = {4: "198.18.79.9", 6: "fd79::9"}
"""A second address of the peer, behind it."""
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
TIMEOUT = 5.0
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count()


@dataclass(frozen=True)
class Namespace:
    name: str

    def run(self, *command: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Both outputs are in `stdout`. `user`: without any capability."""
        ids = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *ids, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )

    def must(self, *command: str) -> str:
        result = self.run(*command)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}"
        return result.stdout

    def socket(
        self, version: int, kind: socket.SocketKind = socket.SOCK_STREAM, user: int = 0
    ) -> socket.socket:
        """`user`: who owns the socket, as the rules see it."""
        with self.entered():
            os.seteuid(user)
            try:
                made = socket.socket(FAMILY[version], kind)
            finally:
                os.seteuid(0)
        made.settimeout(TIMEOUT)
        return made

    def listener(self, address: str, port: int) -> socket.socket:
        made = self.socket(6 if ":" in address else 4)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        return made

    def add(self) -> None:
        _ip("netns", "add", self.name)

    def delete(self) -> None:
        """If it is there."""
        _ip("netns", "del", self.name, must=False)

    def ip(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread makes meanwhile is in the namespace."""
        own = Path("/proc/thread-self/ns/net")
        with own.open() as back, Path("/run/netns", self.name).open() as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(back.fileno())


@contextmanager
def pod_and_peer() -> Iterator[tuple[Namespace, Namespace]]:
    """Addresses are `POD`, `PEER` and `FAR`."""
    mark = f"pf{os.getpid() % 100000}n{next(_counter)}"
    pod, peer = Namespace(f"{mark}-pod"), Namespace(f"{mark}-peer")
    try:
        for namespace in (pod, peer):
            _ip("netns", "add", namespace.name)
            _ip("-n", namespace.name, "link", "set", "lo", "up")
        _ip("-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer.name)
        for namespace, addresses in ((pod, POD), (peer, PEER)):
            for version, length in ((4, 24), (6, 64)):
                _address(namespace, version, f"{addresses[version]}/{length}", "eth0")
            _ip("-n", namespace.name, "link", "set", "eth0", "up")
        for version, length in ((4, 32), (6, 128)):
            _address(peer, version, f"{FAR[version]}/{length}", "lo")
            _ip("-n", pod.name, f"-{version}", "route", "add", "default", "via", PEER[version])
        yield pod, peer
    finally:
        for namespace in (pod, peer):
            _ip("netns", "del", namespace.name, must=False)


def arrival(listener: socket.socket, client: socket.socket, target: tuple[str, int]) -> tuple[str, int]:
    """Calls `target`; the original destination of the connection that `listener` gets, and of no other."""
    client.connect(target)
    accepted, caller = listener.accept()
    with accepted:
        # The kernel may change the port: two calls to different targets share one, and both arrive here.
        assert caller[0] == client.getsockname()[0]
        token = os.urandom(8)
        client.sendall(token)
        assert accepted.recv(100) == token
        return original_destination(accepted)


def original_destination(accepted: socket.socket) -> tuple[str, int]:
    """SO_ORIGINAL_DST; the socket's own address where no rule is asked and the kernel tracks nothing."""
    try:
        return _tracked_destination(accepted)
    except FileNotFoundError:
        host, port = accepted.getsockname()[:2]
        return host, port


def _tracked_destination(accepted: socket.socket) -> tuple[str, int]:
    if accepted.family == socket.AF_INET6:
        port, host = struct.unpack_from("!2xH4x16s", accepted.getsockopt(socket.IPPROTO_IPV6, 80, 28))
    else:
        port, host = struct.unpack_from("!2xH4s", accepted.getsockopt(socket.IPPROTO_IP, 80, 16))
    return socket.inet_ntop(accepted.family, host), port


def _address(namespace: Namespace, version: int, address: str, interface: str) -> None:
    # Without duplicate address detection, which takes a second or two.
    nodad = ["nodad"] if version == 6 else []
    _ip("-n", namespace.name, "addr", "add", address, "dev", interface, *nodad)


def _ip(*arguments: str, must: bool = True) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10)
    assert result.returncode == 0 or not must, f"ip {' '.join(arguments)}: {result.stderr}"


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
