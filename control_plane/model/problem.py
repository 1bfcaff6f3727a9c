"""What is wrong with the configuration, in words for a person: where, which object, which field, what to do.

Sources and the pipeline make lists of these; the log and the status page show them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    ERROR = "error"
    """The configuration that it is part of is refused; the last good one keeps serving."""
    WARNING = "warning"
    """In force, but probably not what was meant."""
    NOTE = "note"
    """Without effect here."""


@dataclass(frozen=True, slots=True)
class Problem:
    severity: Severity
    message: str
    object: str = ""
    """`Kind namespace/name`; empty when the problem is a file's."""
    field: str = ""
    """Path in the object, such as `spec.rules[0].backendRefs[1].port`."""
    file: str = ""
    """Relative to the folder that is watched; empty when it does not come from a file."""
    line: int = 0
    """1-based; 0: unknown."""
    document: int = 0
    """1-based place among the file's YAML documents; 0: the whole file."""

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "")
        if self.document:
            place += f" (document {self.document})"
        return ": ".join(part for part in (place, self.object, self.field, self.message) if part)
