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
