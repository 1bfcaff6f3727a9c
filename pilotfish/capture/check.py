"""The validator: compares the rules in force with those that `install` would set, and tries a connection.

Called by `command.py`. Changes nothing; listens for a moment on a port of the sidecar where nobody does.
"""

from __future__ import annotations

from pilotfish.capture.backends import Backend, Places, backends, count_rules
from pilotfish.capture.host import CaptureError, has_loopback_ipv6, has_routable_ipv6, has_source_address
from pilotfish.capture.probe import Fact, probe
from pilotfish.capture.rules import rule_name
from pilotfish.capture.settings import CaptureSettings

_AGAIN = "`pilotfish capture install` with the same options sets it"


def check(settings: CaptureSettings, choice: str) -> list[Fact]:
    """What is so and what is not, rules first."""
    facts = _rules(settings, choice)
    versions = settings.versions
    if settings.ipv6 and not has_loopback_ipv6():
        facts.append(_without_loopback())
        versions = (4,)
    elif settings.ipv6 and not has_source_address():
        facts.append(Fact(False, f"address ::6 is not on lo: {_AGAIN}"))
    return facts + [probe(settings, version) for version in versions]


def _without_loopback() -> Fact:
    """The rules lead connections over IPv6 to the sidecar, which takes none."""
    if has_routable_ipv6():
        problem = "lo has no IPv6 address, and the pod has one: nothing would answer over IPv6"
        return Fact(False, f"{problem}; set net.ipv6.conf.lo.disable_ipv6 to 0")
    return Fact(None, "lo has no IPv6 address: connections over IPv6 are refused")


def differences(expected: Places, found: Places) -> list[str]:
    """Every rule that is absent, that was set for other options, or that is not ours."""
    texts = []
    for place in {**expected, **found}:
        wanted, there = expected.get(place, []), found.get(place, [])
        names = set(map(rule_name, wanted))
        for label in wanted:
            if label not in there and rule_name(label) not in map(rule_name, there):
                texts.append(f"{place}: rule {rule_name(label)} is absent: {_AGAIN}")
        for label in there:
            if label not in wanted:
                known = rule_name(label) in names
                what = "was set for other options" if known else "does not belong there"
                texts.append(
                    f"{place}: rule {rule_name(label)} {what}: `pilotfish capture install` sets it anew"
                )
        if sorted(wanted) == sorted(there) and wanted != there:
            texts.append(f"{place}: the rules are in another order: {_AGAIN}")
        elif len(there) > len(set(there)):
            texts.append(f"{place}: a rule is there more than once: {_AGAIN}")
    return texts


def _rules(settings: CaptureSettings, choice: str) -> list[Fact]:
    looked = [backend for backend in backends(choice) if backend.is_installed()]
    if not looked:
        return [Fact(None, "rules not looked at: neither nft nor iptables is installed here")]
    there: list[tuple[Backend, Places]] = []
    for backend in looked:
        try:
            found = backend.found()
        except CaptureError as error:
            return [Fact(None, f"rules not looked at: {error}")]
        if found:
            there.append((backend, found))
    if not there:
        return [Fact(False, "no rules of pilotfish are set here: run `pilotfish capture install`")]
    facts = []
    for backend, found in there:
        wrong = differences(backend.expected(settings), found)
        facts += [Fact(False, f"{backend.name}: {text}") for text in wrong]
        if not wrong:
            count = count_rules(found)
            facts.append(Fact(True, f"{backend.name}: {count} rules are as they should be"))
    if len(there) > 1:
        names = " and ".join(backend.name for backend, _ in there)
        facts.append(Fact(False, f"rules are set with {names}: run `pilotfish capture install` to keep one"))
    return facts
