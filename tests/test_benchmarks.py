"""What the benchmarks take for granted of the tree."""

from __future__ import annotations

import ast

from benchmarks.compiled import MODULES, mark_subclasses
from tests.support.processes import ROOT

PROTOCOL = ROOT / "sidecar" / "protocol"
BUILT_IN = {"bytes", "dict", "int", "list", "str", "tuple"}


def subclasses(source: str) -> dict[str, int]:
    """Those of built-in types, and how many decorators each has."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {
        each.name: len(each.decorator_list)
        for each in classes
        if {ast.unparse(base).partition("[")[0] for base in each.bases} & BUILT_IN
    }


def test_every_class_that_mypyc_cannot_compile_is_marked_before_it_does() -> None:
    found = {name: subclasses((PROTOCOL / f"{name}.py").read_text()) for name in MODULES}
    events = found.pop("events")
    assert not any(found.values())
    assert len(events) == 2
    marked = subclasses(mark_subclasses((PROTOCOL / "events.py").read_text()))
    assert marked == dict.fromkeys(events, 1)
