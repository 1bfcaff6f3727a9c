"""Text tables for terminals: columns as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines without trailing blanks; the last column is never padded."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def span(seconds: float) -> str:
    """A length of time in its largest sensible unit: `3d`, `23h`, `5m`, `0s`; with `-` for the past."""
    size, sign = abs(seconds), "-" if seconds <= -1 else ""
    for unit, length, least in (("d", 86400, 2), ("h", 3600, 1), ("m", 60, 1)):
        if size >= least * length:
            return f"{sign}{int(size // length)}{unit}"
    return f"{sign}{int(size)}s"


def remaining(seconds: float) -> str:
    """What is left of a certificate: `23h left`, or `ended 2h ago`."""
    return f"{span(seconds)} left" if seconds > 0 else f"ended {span(-seconds)} ago"
