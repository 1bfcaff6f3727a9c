"""Pods as network namespaces on a bridge, for tests that run as root. Uses `ip` alone."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_PREFIX, _LENGTH = {4: "198.18.77.", 6: "fd77::"}, {4: 24, 6: 64}
_counter = itertools.count()


class PodNetwork:
    """Of IPv4 alone, or of IPv6 alone. `pods`: name to the address of its namespace."""

    def __init__(self, names: tuple[str, ...], version: int) -> None:
        # The kernel takes a namespace's interfaces away some time after it: names are not used again.
        self.mark = f"pf{os.getpid() % 100000}p{next(_counter)}"
        self.pods = {name: f"{_PREFIX[version]}{number}" for number, name in enumerate(names, 11)}
        self.gateway = f"{_PREFIX[version]}1"
        """Address of the bridge, that is, of the test's own namespace."""
        self._length = _LENGTH[version]

    def inside(self, name: str, *command: str) -> list[str]:
        """The command as it runs in the namespace of a pod."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def up(self) -> None:
        _ip("link", "add", self.mark, "type", "bridge")
        self._address(self.gateway, self.mark)
        _ip("link", "set", self.mark, "up")
        for name, address in self.pods.items():
            space, cable = self._namespace(name), self._cable(name)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self.mark, "up")
            self._address(address, "eth0", "-n", space)
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, name: str) -> None:
        """Nothing reaches the pod any more, or comes from it, as when its node dies."""
        _ip("link", "set", self._cable(name), "down")

    def down(self) -> None:
        for name in self.pods:
            _ip("link", "del", self._cable(name), must=False)
            _ip("netns", "del", self._namespace(name), must=False)
        _ip("link", "del", self.mark, must=False)

    def _address(self, address: str, interface: str, *where: str) -> None:
        # Without duplicate address detection, which takes a second or two.
        nodad = ["nodad"] if ":" in address else []
        _ip(*where, "addr", "add", f"{address}/{self._length}", "dev", interface, *nodad)

    def _namespace(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self.mark}v{list(self.pods).index(name)}"


def _ip(*arguments: str, must: bool = True) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10)
    assert result.returncode == 0 or not must, f"ip {' '.join(arguments)}: {result.stderr}"


@contextmanager
def pod_network(*names: str, version: int = 4) -> Iterator[PodNetwork]:
    network = PodNetwork(names, version)
    try:
        network.up()
        yield network
    finally:
        network.down()
