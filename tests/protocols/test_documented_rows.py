"""The tables of docs/protocols.md name their tests; this one that they exist."""

from __future__ import annotations

import re

from tests.support.processes import ROOT


def test_every_test_that_the_tables_name_exists() -> None:
    folder = ROOT / "tests" / "protocols"
    defined = {
        name
        for file in folder.glob("test_*.py")
        for name in (file.name, *re.findall(r"^def (test_\w+)", file.read_text(), re.M))
    }
    named = set(re.findall(r"`(test_[\w.]+)`", (ROOT / "docs" / "protocols.md").read_text()))
    assert named - defined == set()
    assert len(named) > 60
