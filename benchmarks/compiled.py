"""A copy of the sidecar whose HTTP/2 codec mypyc has compiled: the contender `pilotfish-compiled`.

It shows what is Python's own share of a request there. It is for measuring, not for use: mypyc keeps pairs of
bytes unboxed, so that a field which must never be indexed (RFC 7541 section 6.2.3) forgets that it is one.
Needs a C compiler and Python's headers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import BenchError

PACKAGES = ("sidecar", "control_plane", "mesh_api", "pilotfish")
MODULES = ("events", "field_rules", "h2", "h2_control", "h2_frames", "h2_sender", "h2_stream", "hpack")
MODULES += ("hpack_encoder", "huffman")
SUBCLASSES = ("class NeverIndexed(", "class NeverIndexedValue(")
"""Of built-in types, in `events.py`: mypyc compiles none, so they stay as they are."""
_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
setup(name="codec", packages=[], ext_modules=mypycify(sys.argv.pop(1).split(","), opt_level="3"))
"""


def build(folder: Path) -> Path:
    """Where the copy is: a folder for PYTHONPATH. Made anew. Raises BenchError."""
    root = folder.resolve() / "compiled"
    shutil.rmtree(root, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    events = root / "sidecar" / "protocol" / "events.py"
    events.write_text(mark_subclasses(events.read_text()))
    (root / "setup.py").write_text(_SETUP)
    modules = ",".join(f"sidecar/protocol/{name}.py" for name in MODULES)
    command = [sys.executable, "setup.py", modules, "--quiet", "build_ext", "--inplace"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchError(
            f"the codec cannot be compiled (it takes mypy, a C compiler and Python's headers): "
            f"{(ended.stdout + ended.stderr)[-1500:]}"
        )
    return root


def mark_subclasses(source: str) -> str:
    """The source of `events.py` as mypyc takes it. Raises BenchError."""
    for subclass in SUBCLASSES:
        if source.count(subclass) != 1:
            raise BenchError(f"sidecar/protocol/events.py has no single {subclass!r}")
        mark = "@__import__('mypy_extensions').mypyc_attr(native_class=False)"
        source = source.replace(subclass, f"{mark}\n{subclass}")
    return source
