"""Facts: what `pilotfish check` found out, one line each, with a hint and a page where one is wrong.

Made by the `*_facts` modules, printed by `check`. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


class State(enum.Enum):
    """How a fact is."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not as it should, or nobody can tell."""
    FAILED = "failed"


_MARKS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One line."""

    name: str
    """For scripts: does not change with versions."""
    state: State
    text: str
    hint: str = ""
    link: str = ""
    """Page and heading in this repository."""


def ok(name: str, text: str) -> Fact:
    return Fact(name, State.OK, text)


def warning(name: str, text: str, hint: str, link: str) -> Fact:
    return Fact(name, State.WARNING, text, hint, link)


def failed(name: str, text: str, hint: str, link: str) -> Fact:
    return Fact(name, State.FAILED, text, hint, link)


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact under its heading."""

    section: str
    fact: Fact


def all_well(findings: Iterable[Finding]) -> bool:
    return all(finding.fact.state is not State.FAILED for finding in findings)


def text_of(findings: Sequence[Finding]) -> str:
    """Headings, facts with their marks, hints and links under those that are not well, and a last line."""
    lines: list[str] = []
    for section, found in groupby(findings, key=lambda finding: finding.section):
        lines.append(section)
        for finding in found:
            fact = finding.fact
            lines.append(f"  {_MARKS[fact.state]} {fact.text}")
            lines += [f"      {part}" for part in (fact.hint, fact.link) if part]
    counts = {state: sum(finding.fact.state is state for finding in findings) for state in State}
    wrong, odd, good = counts[State.FAILED], counts[State.WARNING], counts[State.OK]
    lines.append(f"{wrong} failed, {odd} to look at, {good} as they should be")
    return "\n".join(lines)


def json_of(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "ok": all_well(findings),
        "facts": [
            {
                "section": finding.section,
                "name": finding.fact.name,
                "state": finding.fact.state.value,
                "text": finding.fact.text,
                "hint": finding.fact.hint,
                "link": finding.fact.link,
            }
            for finding in findings
        ],
    }


def logs(pod: str, container: str = "") -> str:
    """The command that shows what a pod (`NAMESPACE/NAME`) says."""
    namespace, _, name = pod.partition("/")
    return f"kubectl -n {namespace} logs {name}" + (f" -c {container}" if container else "")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
