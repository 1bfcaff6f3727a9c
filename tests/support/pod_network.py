"""Pods as network namespaces on a bridge, for tests that run as root. Uses `ip` alone."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

GATEWAY = "198.18.77.1"
"""Address of the bridge, that is, of the test's own namespace."""
_PREFIX = "198.18.77"
_counter = itertools.count()


class PodNetwork:
    """`pods`: name to the address of its namespace."""

    def __init__(self, names: tuple[str, ...]) -> None:
        # The kernel takes a namespace's interfaces away some time after it: names are not used again.
        self.mark = f"pf{os.getpid() % 100000}p{next(_counter)}"
        self.pods = {name: f"{_PREFIX}.{number}" for number, name in enumerate(names, 11)}

    def inside(self, name: str, *command: str) -> list[str]:
        """The command as it runs in the namespace of a pod."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def up(self) -> None:
        _ip("link", "add", self.mark, "type", "bridge")
        _ip("addr", "add", f"{GATEWAY}/24", "dev", self.mark)
        _ip("link", "set", self.mark, "up")
        for name, address in self.pods.items():
            space, cable = self._namespace(name), self._cable(name)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self.mark, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def down(self) -> None:
        for name in self.pods:
            _ip("link", "del", self._cable(name), must=False)
            _ip("netns", "del", self._namespace(name), must=False)
        _ip("link", "del", self.mark, must=False)

    def _namespace(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self.mark}v{list(self.pods).index(name)}"


def _ip(*arguments: str, must: bool = True) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10)
    assert result.returncode == 0 or not must, f"ip {' '.join(arguments)}: {result.stderr}"


@contextmanager
def pod_network(*names: str) -> Iterator[PodNetwork]:
    network = PodNetwork(names)
    try:
        network.up()
        yield network
    finally:
        network.down()
