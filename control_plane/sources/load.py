"""A folder of Kubernetes YAML and JSON files to one checked Mesh, or to the list of what is wrong with it.

Called by `file`, off the event loop: it blocks on the disk. All or nothing: with one error there is no
Mesh. Errors of different objects are all reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem, Severity
from control_plane.sources.documents import Document, DocumentError, read_documents
from control_plane.sources.fields import FieldError, path_text
from control_plane.sources.fields import Path as FieldPath
from control_plane.sources.objects import ObjectRef, Parsed, assemble, describe, is_known, parse
from control_plane.sources.policy_admission import check_policies
from control_plane.sources.references import check

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Loaded:
    """`mesh` is None exactly when one of `problems` is an error."""

    mesh: Mesh | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells that a file changed without reading it."""

    modified_ns: int
    size: int
    inode: int


def scan(folder: Path) -> Mapping[Path, FileState]:
    """The configuration files of the folder tree. Hidden files and folders are left out: editors and
    Kubernetes' volumes keep their own copies there. Raises OSError if the folder cannot be listed."""
    found: dict[Path, FileState] = {}
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name.startswith("."):
                continue
            try:
                if path.is_dir():
                    pending.append(path)
                elif path.suffix in SUFFIXES:
                    state = path.stat()
                    found[path] = FileState(state.st_mtime_ns, state.st_size, state.st_ino)
            except FileNotFoundError:
                continue  # replaced between the listing and the look: the next scan sees it
    return found


def load(folder: Path) -> Loaded:
    """Reads the whole folder tree. Raises OSError if the folder itself cannot be listed."""
    problems: list[Problem] = []
    documents: list[Document] = []
    for path in sorted(scan(folder)):
        name = str(path.relative_to(folder))
        try:
            documents += read_documents(name, path.read_text(encoding="utf-8"))
        except DocumentError as error:
            problems.append(
                Problem(Severity.ERROR, error.message, file=name, line=error.line, document=error.document)
            )
        except UnicodeDecodeError as error:
            message = f"not UTF-8 at byte {error.start}; save the file as UTF-8"
            problems.append(Problem(Severity.ERROR, message, file=name))
        except OSError as error:
            problems.append(Problem(Severity.ERROR, f"cannot be read: {error.strerror}", file=name))
    parsed, places = _parse(documents, problems)
    if any(problem.severity is Severity.ERROR for problem in problems):
        return Loaded(None, tuple(problems))
    mesh = assemble(parsed)
    for finding in (*check(mesh), *check_policies(mesh)):
        problems.append(
            _located(places[finding.object], finding.object, finding.path, finding.message, finding.severity)
        )
    failed = any(problem.severity is Severity.ERROR for problem in problems)
    return Loaded(None if failed else mesh, tuple(problems))


def _parse(
    documents: list[Document], problems: list[Problem]
) -> tuple[list[Parsed], dict[ObjectRef, Document]]:
    """The model of every document of a kind in use and where each came from; adds to `problems`."""
    parsed: list[Parsed] = []
    places: dict[ObjectRef, Document] = {}
    for document in documents:
        ref: ObjectRef | None = None
        try:
            ref = describe(document.value)
            if not is_known(document.value):
                message = "the mesh has no use for this kind; ignored"
                problems.append(_located(document, ref, ("kind",), message, Severity.NOTE))
                continue
            if ref in places:
                other = places[ref]
                where = f"{other.file}:{other.line(('kind',))}" if other.node else other.file
                raise FieldError(("metadata", "name"), f"is defined in {where} too; remove one of the two")
            places[ref] = document
            parsed += parse(document.value)
        except FieldError as error:
            problems.append(_located(document, ref, error.path, error.message, Severity.ERROR))
    return parsed, places


def _located(
    document: Document, ref: ObjectRef | None, path: FieldPath, message: str, severity: Severity
) -> Problem:
    return Problem(
        severity=severity,
        message=message,
        object=str(ref) if ref else "",
        field=path_text(path),
        file=document.file,
        line=document.line(path),
        document=document.number,
    )
