"""A node, pods and other hosts as network namespaces, IPv4 and IPv6, as routing network plugins make them.

The node routes between all, has kube-proxy's rules for virtual addresses and node ports, and answers DNS over
UDP. Need root, ip and nft.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.support.netns import Namespace

NODE = {4: "198.18.80.1", 6: "fd80::1"}
"""Of the node: the kubelet calls from there, and node ports are there."""
SEARCH = "shop.svc.cluster.local svc.cluster.local cluster.local"
_GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
_FULL = {4: 32, 6: 128}
_IP = {4: "ip", 6: "ip6"}
_counter = itertools.count()


@dataclass(frozen=True)
class Host:
    """A pod, or a machine outside of the cluster."""

    namespace: Namespace
    addresses: Mapping[int, str]
    """By IP version."""


@dataclass(frozen=True)
class Forward:
    """What kube-proxy does with one port of one address. `node_port`: the caller's address is replaced."""

    address: str
    port: int
    to: tuple[tuple[str, int], ...]
    node_port: bool = False


class ClusterNetwork:
    """Use as a context. `records` of DNS: name to addresses, or to the one name that it stands for."""

    def __init__(self) -> None:
        self._mark = f"pf{os.getpid() % 100000}c{next(_counter)}"
        self.node = Namespace(f"{self._mark}-node")
        self.hosts: dict[str, Host] = {}
        self.records: dict[str, Sequence[str]] = {}
        self._numbers = itertools.count(11)

    def __enter__(self) -> ClusterNetwork:
        try:
            self._make(self.node)
            for version, address in NODE.items():
                self._address(self.node, version, address, "lo")
            for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                self.node.must("sh", "-c", f"echo 1 > /proc/sys/net/{setting}")
            with self.node.entered():
                self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._dns.bind((NODE[4], 53))
            threading.Thread(target=self._serve_dns, daemon=True).start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_dns"):
            with suppress(OSError):
                self._dns.shutdown(socket.SHUT_RDWR)
            self._dns.close()
        for namespace in (*(host.namespace for host in self.hosts.values()), self.node):
            Namespace(namespace.name).delete()
            shutil.rmtree(Path("/etc/netns", namespace.name), ignore_errors=True)
        with suppress(OSError):
            Path("/etc/netns").rmdir()

    def add(self, name: str) -> Host:
        """A host that reaches all others, by the node."""
        number = next(self._numbers)
        host = Host(Namespace(f"{self._mark}-{name}"), {4: f"198.18.80.{number}", 6: f"fd80::{number:x}"})
        cable = f"v{number}"
        self.hosts[name] = host
        inside, node = host.namespace, self.node
        self._make(inside)
        # As container runtimes set it.
        inside.must("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start")
        inside.ip("link", "add", "eth0", "type", "veth", "peer", "name", cable, "netns", node.name)
        for version, address in host.addresses.items():
            self._address(inside, version, address, "eth0")
            self._address(node, version, _GATEWAY[version], cable, 32 if version == 4 else 64)
        inside.ip("link", "set", "eth0", "up")
        node.ip("link", "set", cable, "up")
        inside.ip("route", "add", _GATEWAY[4], "dev", "eth0", "scope", "link")
        for version, address in host.addresses.items():
            inside.ip(f"-{version}", "route", "add", "default", "via", _GATEWAY[version], "dev", "eth0")
            route = [f"{address}/{_FULL[version]}", "dev", cable, "src", NODE[version]]
            node.ip(f"-{version}", "route", "add", *route)
        directory = Path("/etc/netns", inside.name)
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text(f"nameserver {NODE[4]}\nsearch {SEARCH}\noptions ndots:5\n")
        (directory / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        return host

    def forward(self, forwards: Sequence[Forward]) -> None:
        """Sets kube-proxy's rules in place of earlier ones."""
        lines = ["add table inet kube", "delete table inet kube", "table inet kube {", "chain services {"]
        for each in forwards:
            family = _IP[ip_address(each.address).version]
            mark = "meta mark set 0x4000 " if each.node_port else ""
            to = ", ".join(f"{number} : {host} . {port}" for number, (host, port) in enumerate(each.to))
            pick = f"numgen random mod {len(each.to)} map {{ {to} }}"
            match = f"{family} daddr {each.address} tcp dport {each.port}"
            lines.append(f"{match} {mark}dnat {family} to {pick}" if each.to else f"{match} return")
        lines += ["}"]
        for chain, hook in (("in", "prerouting"), ("own", "output")):
            lines.append(f"chain {chain} {{ type nat hook {hook} priority -100; jump services; }}")
        lines.append("chain out { type nat hook postrouting priority 100;")
        for version, address in NODE.items():
            lines.append(f"meta mark 0x4000 meta nfproto ipv{version} snat {_IP[version]} to {address}")
        self.node.must("sh", "-c", "nft -f - <<'END'\n" + "\n".join([*lines, "}", "}", "END"]))

    # --- DNS ---

    def _serve_dns(self) -> None:
        while True:
            try:
                query, client = self._dns.recvfrom(2048)
            except OSError:
                return
            if not query:
                return
            with suppress(OSError):
                self._dns.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        name, at = _read_name(query, 12)
        kind = int.from_bytes(query[at : at + 2], "big")
        owner, answers = b"\xc0\x0c", []
        found = self.records.get(name)
        if found and not _is_address(found[0]):
            canonical = _name(found[0])
            answers.append(_record(owner, 5, canonical))
            owner, found = canonical, self.records.get(found[0])
        for address in found or ():
            packed = ip_address(address).packed
            if kind == (1 if len(packed) == 4 else 28):
                answers.append(_record(owner, kind, packed))
        flags = 0x8580 if found else 0x8583
        head = struct.pack("!2sHHHHH", query[:2], flags, 1, len(answers), 0, 0)
        return head + query[12 : at + 4] + b"".join(answers)

    # --- inside ---

    def _make(self, namespace: Namespace) -> None:
        namespace.add()
        namespace.ip("link", "set", "lo", "up")

    def _address(
        self, namespace: Namespace, version: int, address: str, interface: str, length: int = 0
    ) -> None:
        # Without duplicate address detection, which takes a second or two.
        nodad = ["nodad"] if version == 6 else []
        namespace.ip("addr", "add", f"{address}/{length or _FULL[version]}", "dev", interface, *nodad)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


def _read_name(query: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 5, len(data)) + data
