"""The tools by which rules are set and read: nftables, and iptables in both of its kinds.

`apply.py` sets and removes by them, `check.py` reads. What they set is in `rules.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from pilotfish.capture import rules
from pilotfish.capture.host import NotPermittedError, ToolError, is_installed, run
from pilotfish.capture.rules import is_label
from pilotfish.capture.settings import CaptureSettings

Places = dict[str, list[str]]
"""Where rules are (a chain, in words) to the labels of the rules there, in order."""
CHOICES = ("auto", "nft", "iptables", "iptables-nft", "iptables-legacy")


class Backend(Protocol):
    """Every method may raise CaptureError."""

    name: str

    def is_installed(self) -> bool: ...

    def install(self, settings: CaptureSettings) -> None:
        """Replaces what was there; all rules of an IP version come into force at once."""

    def remove(self) -> bool:
        """Whether anything was there."""

    def found(self) -> Places:
        """What is in force; empty where there is nothing of ours."""

    def expected(self, settings: CaptureSettings) -> Places:
        """What `found` gives after `install`."""


class Nft:
    """Table `inet pilotfish`, for IPv4 and IPv6 together."""

    name = "nft"

    def is_installed(self) -> bool:
        return is_installed("nft")

    def install(self, settings: CaptureSettings) -> None:
        run(["nft", "-f", "-"], rules.nft_ruleset(settings))

    def remove(self) -> bool:
        if not self._is_there():
            return False
        run(["nft", "-f", "-"], rules.NFT_REMOVE)
        return True

    def found(self) -> Places:
        if not self._is_there():
            return {}
        places: Places = {}
        for item in _nft_json("table", "inet", rules.TABLE):
            if "chain" in item:
                chain = item["chain"]
                hook = [_hook(chain.get("hook", "none"), chain.get("prio", 0), chain.get("policy", "none"))]
                places[self._place(chain["name"])] = hook
            elif "rule" in item:
                rule = item["rule"]
                label = rule.get("comment", f"{json.dumps(rule['expr'])} without comment")
                places[self._place(rule["chain"])].append(label)
        # A table that somebody emptied is there all the same.
        return places or {f"table inet {rules.TABLE}": []}

    def expected(self, settings: CaptureSettings) -> Places:
        places = {
            self._place(chain): [_hook(hook, rules.NFT_PRIORITY, "accept")]
            for chain, hook in rules.NFT_HOOKS.items()
        }
        for rule in rules.nft_rules(settings):
            places[self._place(rule.chain)].append(rule.label)
        return places

    def _place(self, chain: str) -> str:
        return f"table inet {rules.TABLE}, chain {chain}"

    def _is_there(self) -> bool:
        wanted = ("inet", rules.TABLE)
        try:
            tables = [item["table"] for item in _nft_json("tables") if "table" in item]
        except ToolError:
            # A kernel without nf_tables has none; setting rules will say why not.
            return False
        return any((table["family"], table["name"]) == wanted for table in tables)


class Iptables:
    """Own chains in the table nat. `kind`: `nft` or `legacy`, the two interfaces of the kernel."""

    def __init__(self, kind: str) -> None:
        self.name = f"iptables-{kind}"
        self._kind = kind

    def is_installed(self) -> bool:
        return is_installed(self._tool(4, "restore"))

    def install(self, settings: CaptureSettings) -> None:
        given = {version: self._saved(version) for version in (4, 6)}
        texts = {
            version: rules.iptables_install(settings, version, saved)
            if version in settings.versions
            else rules.iptables_remove(saved)
            for version, saved in given.items()
        }
        # IPv4 is not to be captured alone because IPv6 cannot be.
        for test in (True, False):
            for version, text in texts.items():
                if text:
                    self._restore(version, text, test)

    def remove(self) -> bool:
        texts = {version: rules.iptables_remove(self._saved(version)) for version in (4, 6)}
        for version, text in texts.items():
            if text:
                self._restore(version, text)
        return any(texts.values())

    def found(self) -> Places:
        places = {}
        for version in (4, 6):
            saved = self._saved(version)
            for chain, own in rules.IPTABLES_CHAINS.items():
                hook = rules.IPTABLES_HOOKS[chain]
                jumps = [line for line in saved.splitlines() if line.endswith(f"-j {own}")]
                labels = [label for jump in jumps for label in rules.iptables_labels(jump, hook)]
                places[self._place(version, hook)] = labels
                places[self._place(version, own)] = rules.iptables_labels(saved, own)
        return {place: labels for place, labels in places.items() if labels}

    def expected(self, settings: CaptureSettings) -> Places:
        places: Places = {}
        for version in settings.versions:
            for jump in rules.iptables_jumps():
                places[self._place(version, rules.IPTABLES_HOOKS[jump.chain])] = [jump.label]
            for rule in rules.iptables_rules(settings, version):
                place = self._place(version, rules.IPTABLES_CHAINS[rule.chain])
                places.setdefault(place, []).append(rule.label)
        return places

    def _place(self, version: int, chain: str) -> str:
        return f"IPv{version} table nat, chain {chain}"

    def _tool(self, version: int, verb: str) -> str:
        return f"{'ip6' if version == 6 else 'ip'}tables-{self._kind}-{verb}"

    def _restore(self, version: int, text: str, test: bool = False) -> None:
        # Another user of the legacy interface may hold its lock for a moment.
        command = [self._tool(version, "restore"), "--noflush", "--wait=5"]
        run([*command, "--test"] if test else command, text)

    def _saved(self, version: int) -> str:
        """What is in the table nat."""
        if self._kind == "legacy" and not _has_legacy_nat(version):
            return ""
        try:
            return run([self._tool(version, "save"), "-t", "nat"])
        except ToolError:
            # A kernel that does not know the table has nothing in it; setting rules will say why not.
            return ""


def count_rules(places: Places) -> int:
    """Without what only hooks a chain into the kernel."""
    return sum(is_label(label) for labels in places.values() for label in labels)


def backends(choice: str) -> list[Backend]:
    """What may be tried for a choice of `CHOICES`, best first."""
    known: list[Backend] = [Nft(), Iptables("nft"), Iptables("legacy")]
    return [backend for backend in known if choice == "auto" or backend.name.startswith(choice)]


def _hook(hook: str, priority: int, policy: str) -> str:
    return f"type nat hook {hook} priority {priority} policy {policy}"


def _nft_json(*what: str) -> list[dict[str, dict[str, Any]]]:
    """Objects, each in a dictionary with its kind as the only key (libnftables-json(5))."""
    items: list[dict[str, dict[str, Any]]] = json.loads(run(["nft", "-j", "list", *what]))["nftables"]
    return items


def _has_legacy_nat(version: int) -> bool:
    # Asking iptables-legacy-save would load the kernel's modules.
    names = Path(f"/proc/net/{'ip6' if version == 6 else 'ip'}_tables_names")
    try:
        return "nat" in names.read_text().split()
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise NotPermittedError(f"{names} cannot be read") from error
