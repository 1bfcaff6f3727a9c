"""The tables of docs/protocols.md and docs/hostile-peers.md name their tests; these here, that they exist."""

from __future__ import annotations

import re
from fnmatch import filter as matching
from pathlib import Path

import pytest

from tests.support.processes import ROOT

HOSTILE = (ROOT / "docs" / "hostile-peers.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in HOSTILE.split("\n## ")[1:] if "\n|---" in part}


def defined(*files: Path) -> set[str]:
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}


def test_every_test_that_the_tables_name_exists() -> None:
    files = list((ROOT / "tests" / "protocols").glob("test_*.py"))
    named = set(re.findall(r"`(test_[\w.]+)`", (ROOT / "docs" / "protocols.md").read_text()))
    assert named - defined(*files) - {file.name for file in files} == set()
    assert len(named) > 60


@pytest.mark.parametrize("title", SECTIONS)
def test_every_row_about_hostile_peers_names_tests_of_its_section(title: str) -> None:
    files = [ROOT / "tests" / "hostile" / name for name in re.findall(r"`(test_\w+\.py)`", title)]
    found = defined(*files)
    rows = re.findall(r"^\| .*\| (.*) \|$", SECTIONS[title], re.M)[1:]
    assert rows
    for cell in rows:
        patterns = re.findall(r"`(test_[\w*]+)`", cell)
        assert patterns or cell == "same" or (ROOT / cell.strip("`")).exists(), cell
        assert [pattern for pattern in patterns if not matching(found, pattern)] == []
