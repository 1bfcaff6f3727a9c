"""What the pages for operators must not forget."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_FLAGS = {"TCP"}
"""Short upper-case words of the sidecar that are something else."""


def test_every_response_flag_of_the_sidecar_is_in_the_page() -> None:
    flags = {
        node.value.lstrip(",")
        for folder in ("http", "server", "filters")
        for path in (ROOT / "sidecar" / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r",?[A-Z]{2,3}", node.value)
    } - NO_FLAGS
    assert len(flags) >= 15
    rows = re.findall(r"^\| `([A-Z]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(flags)


PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    ROOT / "benchmarks" / "README.md",
]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_and_hints_of_commands_lead_somewhere() -> None:
    links = [
        (page.parent, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    ]
    in_page = [(page, link) for page in PAGES for link in re.findall(r"\]\((#[^)\s]+)\)", page.read_text())]
    hints = [
        (ROOT, hint)
        for path in (ROOT / "pilotfish").rglob("*.py")
        for hint in re.findall(r"\bdocs/[\w-]+\.md(?:#[\w-]+)?", path.read_text())
    ]
    assert len(hints) > 10
    wrong = [link for page, link in in_page if link[1:] not in anchors(page)]
    for folder, link in (*links, *hints):
        file, _, anchor = link.partition("#")
        if not file or "://" in link:
            continue
        target = folder / file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{folder.name}: {link}")
    assert not wrong


def test_manifests_that_pages_and_hints_name_are_there() -> None:
    texts = [path.read_text() for path in (*PAGES, *(ROOT / "pilotfish").rglob("*.py"))]
    named = {path for text in texts for path in re.findall(r"\bdeploy/k8s(?:/[\w-]+)*(?:\.yaml)?", text)}
    assert "deploy/k8s/operator/clusterrole.yaml" in named
    assert not [path for path in named if not (ROOT / path).exists()]
