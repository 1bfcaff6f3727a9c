"""The rules of capture as text for nftables and for iptables-restore. Pure; `apply.py` sets them.

The rules are written once (`capture_rules`), free of either tool's language, so that both backends do the
same. Every rule carries a label in its comment: its name and a checksum of its text. By these `check.py` sees
which rule is absent and which was set for other options.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from mesh_api.names import INBOUND_SOURCE
from pilotfish.capture.settings import CaptureSettings, Network, PortRanges, merge_ports

TABLE = "pilotfish"
"""Of nftables, family inet."""
NFT_REMOVE = f"delete table inet {TABLE}\n"
INBOUND, OUTBOUND = "inbound", "outbound"
NFT_HOOKS = {INBOUND: "prerouting", OUTBOUND: "output"}
NFT_PRIORITY = -100
"""That of destination NAT, as iptables has it."""
IPTABLES_CHAINS = {INBOUND: "PILOTFISH_INBOUND", OUTBOUND: "PILOTFISH_OUTBOUND"}
IPTABLES_HOOKS = {INBOUND: "PREROUTING", OUTBOUND: "OUTPUT"}
_LABEL = "pilotfish/"
_MULTIPORT = 15
"""So many ports fit into one multiport match; a range counts as two."""


@dataclass(frozen=True)
class Rule:
    """One rule: connections that fit all that is given are redirected to `redirect`, or left alone.

    `loopback`: come in (inbound) or go out (outbound) over lo. `user`: owner of the socket.
    `local`: to an address of the pod. Empty tuples and None fit everything.
    """

    chain: str
    name: str
    redirect: int | None = None
    loopback: bool = False
    local: bool = False
    user: int | None = None
    sources: tuple[Network, ...] = ()
    destinations: tuple[Network, ...] = ()
    ports: PortRanges = ()

    @property
    def version(self) -> int | None:
        """4 or 6 where addresses are named, which are all of one version; None: both."""
        return next((network.version for network in (*self.sources, *self.destinations)), None)


@dataclass(frozen=True)
class LabelledRule:
    """A rule in a tool's language, without its comment."""

    chain: str
    label: str
    match: str
    verdict: str


def capture_rules(settings: CaptureSettings) -> list[Rule]:
    """In the order in which they are asked."""
    return [
        Rule(INBOUND, "over-loopback", loopback=True),
        Rule(INBOUND, "skipped-ports", ports=settings.left_inbound),
        Rule(INBOUND, "capture", settings.inbound_port, local=True),
        *_outbound(settings),
    ]


def _outbound(settings: CaptureSettings) -> Iterator[Rule]:
    user = settings.proxy_user
    both = settings.versions
    for version, source in zip(both, INBOUND_SOURCE, strict=False):
        yield Rule(
            OUTBOUND, f"sidecar-to-application-ipv{version}", loopback=True, sources=(ip_network(source),)
        )
    for version, network in zip(both, ("127.0.0.0/8", "::1/128"), strict=False):
        yield Rule(OUTBOUND, f"loopback-ipv{version}", destinations=(ip_network(network),))
    own = merge_ports(((settings.outbound_port, settings.outbound_port), *settings.left_inbound))
    yield Rule(OUTBOUND, "sidecar-to-skipped-ports", user=user, ports=own)
    # A Service's address led the sidecar back to its own pod: its own inbound listener ends the mutual TLS.
    yield Rule(OUTBOUND, "sidecar-to-own-pod", settings.inbound_port, user=user, loopback=True)
    yield Rule(OUTBOUND, "sidecar", user=user)
    yield Rule(OUTBOUND, "within-the-pod", loopback=True)
    yield Rule(OUTBOUND, "skipped-ports", ports=settings.left_outbound)
    for version in both:
        excluded = tuple(network for network in settings.excluded if network.version == version)
        if excluded:
            yield Rule(OUTBOUND, f"excluded-addresses-ipv{version}", destinations=excluded)
    yield Rule(OUTBOUND, "capture", settings.outbound_port)


def nft_rules(settings: CaptureSettings) -> list[LabelledRule]:
    """All rules of the table, as nftables writes them."""
    rules = []
    for chain in (INBOUND, OUTBOUND):
        if not settings.ipv6:
            rules.append(_labelled(chain, "not-ipv6", "meta nfproto ipv6", "return"))
        for rule in capture_rules(settings):
            if rule.chain == chain:
                verdict = f"redirect to :{rule.redirect}" if rule.redirect else "return"
                rules.append(_labelled(chain, rule.name, _nft_match(rule), verdict))
    return rules


def nft_ruleset(settings: CaptureSettings) -> str:
    """For `nft -f -`: replaces the table in one transaction, whether or not it was there."""
    lines = [f"add table inet {TABLE}", NFT_REMOVE.rstrip(), f"table inet {TABLE} {{"]
    rules = nft_rules(settings)
    for chain, hook in NFT_HOOKS.items():
        lines += [f"  chain {chain} {{", f"    type nat hook {hook} priority {NFT_PRIORITY}; policy accept;"]
        lines += [
            f'    {rule.match} {rule.verdict} comment "{rule.label}"' for rule in rules if rule.chain == chain
        ]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _nft_match(rule: Rule) -> str:
    parts = ["meta l4proto tcp"]
    if rule.loopback:
        parts.append('iifname "lo"' if rule.chain == INBOUND else 'oifname "lo"')
    if rule.local:
        parts.append("fib daddr type local")
    if rule.user is not None:
        parts.append(f"meta skuid {rule.user}")
    family = "ip6" if rule.version == 6 else "ip"
    for key, networks in (("saddr", rule.sources), ("daddr", rule.destinations)):
        if networks:
            parts.append(f"{family} {key} {{ {', '.join(map(str, networks))} }}")
    if rule.ports:
        parts.append(f"tcp dport {{ {', '.join(_port_texts(rule.ports, '-'))} }}")
    return " ".join(parts)


def iptables_rules(settings: CaptureSettings, version: int) -> list[LabelledRule]:
    """The rules of the own chains for IPv4 or IPv6, as iptables writes them."""
    rules = []
    for rule in capture_rules(settings):
        if rule.version in (None, version):
            verdict = f"-j REDIRECT --to-ports {rule.redirect}" if rule.redirect else "-j RETURN"
            for part in _iptables_parts(rule):
                rules.append(_labelled(rule.chain, part.name, _iptables_match(part), verdict))
    return rules


def iptables_jumps() -> list[LabelledRule]:
    """One rule a hook, which leads into the own chain."""
    return [_labelled(chain, "jump", "-p tcp", f"-j {IPTABLES_CHAINS[chain]}") for chain in IPTABLES_HOOKS]


def iptables_install(settings: CaptureSettings, version: int, saved: str) -> str:
    """For `iptables-restore --noflush`. `saved`: what iptables-save gives for the table nat."""
    # Naming a chain empties it, or makes it.
    lines = ["*nat", *(f":{chain} - [0:0]" for chain in IPTABLES_CHAINS.values()), *_jumps_away(saved)]
    for rule in iptables_rules(settings, version):
        lines.append(_iptables_line(IPTABLES_CHAINS[rule.chain], rule))
    lines += [_iptables_line(IPTABLES_HOOKS[jump.chain], jump) for jump in iptables_jumps()]
    return "\n".join([*lines, "COMMIT", ""])


def iptables_remove(saved: str) -> str:
    """For `iptables-restore --noflush`; empty where nothing is to be removed."""
    there = [chain for chain in IPTABLES_CHAINS.values() if f"\n:{chain} " in saved]
    away = _jumps_away(saved)
    if not there and not away:
        return ""
    emptied = [f"-F {chain}" for chain in there]
    return "\n".join(["*nat", *away, *emptied, *(f"-X {chain}" for chain in there), "COMMIT", ""])


def iptables_labels(saved: str, chain: str) -> list[str]:
    """Labels of a chain's rules, in order; of a rule without a label its text."""
    return [label_of(line) for line in saved.splitlines() if line.startswith(f"-A {chain} ")]


def label_of(line: str) -> str:
    words = shlex.split(line)
    return next(filter(is_label, words), line)


def is_label(text: str) -> bool:
    return text.startswith(_LABEL)


def rule_name(label: str) -> str:
    """`inbound/capture` from the label of that rule, or the text of a rule that has none."""
    return label.removeprefix(_LABEL).rpartition("/")[0] if is_label(label) else label


def _labelled(chain: str, name: str, match: str, verdict: str) -> LabelledRule:
    checksum = zlib.crc32(f"{match} {verdict}".encode())
    return LabelledRule(chain, f"{_LABEL}{chain}/{name}/{checksum:08x}", match, verdict)


def _iptables_line(chain: str, rule: LabelledRule) -> str:
    return f"-A {chain} {rule.match} -m comment --comment {rule.label} {rule.verdict}"


def _jumps_away(saved: str) -> list[str]:
    own = {f"-j {chain}" for chain in IPTABLES_CHAINS.values()}
    lines = [line.strip() for line in saved.splitlines() if any(line.strip().endswith(jump) for jump in own)]
    return [line.replace("-A ", "-D ", 1) for line in lines if line.startswith("-A ")]


def _iptables_parts(rule: Rule) -> list[Rule]:
    """One rule for each address and each so many ports: iptables has no sets of its own."""
    single: list[tuple[Network, ...]] = [(network,) for network in rule.destinations]
    parts = [
        replace(rule, destinations=destinations, ports=ports)
        for destinations in single or [()]
        for ports in _multiport(rule.ports)
    ]
    if len(parts) == 1:
        return parts
    return [replace(part, name=f"{part.name}-{number}") for number, part in enumerate(parts, 1)]


def _iptables_match(rule: Rule) -> str:
    parts = ["-p tcp"]
    if rule.loopback:
        parts.append("-i lo" if rule.chain == INBOUND else "-o lo")
    if rule.local:
        parts.append("-m addrtype --dst-type LOCAL")
    if rule.user is not None:
        parts.append(f"-m owner --uid-owner {rule.user}")
    parts += [f"-s {network}" for network in rule.sources]
    parts += [f"-d {network}" for network in rule.destinations]
    if rule.ports:
        parts.append(f"-m multiport --dports {','.join(_port_texts(rule.ports, ':'))}")
    return " ".join(parts)


def _multiport(ports: PortRanges) -> list[PortRanges]:
    groups: list[PortRanges] = [()]
    for ends in ports:
        if sum(len(set(pair)) for pair in (*groups[-1], ends)) > _MULTIPORT:
            groups.append(())
        groups[-1] = (*groups[-1], ends)
    return groups


def _port_texts(ports: Iterable[tuple[int, int]], between: str) -> Iterator[str]:
    for low, high in ports:
        yield str(low) if low == high else f"{low}{between}{high}"
