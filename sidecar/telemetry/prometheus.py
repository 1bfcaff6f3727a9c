"""Prometheus text exposition format 0.0.4, written from plain numbers when somebody scrapes.

`metrics.py` calls it; other parts add a `Family` of their own through `Metrics.register`. Nothing here
runs on the request path.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sidecar.telemetry.histogram import BUCKETS, cumulative

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """One metric with all its series."""

    name: str
    kind: str
    """counter, gauge or histogram; a counter's name ends in `_total`."""
    help: str
    samples: Sequence[tuple[str, float]]
    """Label text as `labels` makes it, and the value in base units."""


def labels(pairs: Mapping[str, str]) -> str:
    """`a="b",c="d"` with the values escaped; empty for no labels."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def render(family: Family) -> str:
    """The family's HELP, TYPE and sample lines."""
    name = family.name
    lines = [_head(name, family.kind, family.help)]
    for label_text, value in family.samples:
        lines.append(
            f"{name}{{{label_text}}} {_number(value)}\n" if label_text else f"{name} {_number(value)}\n"
        )
    return "".join(lines)


def render_histogram(
    name: str, help_text: str, series: Iterable[tuple[str, Sequence[int], float]]
) -> Iterator[str]:
    """A histogram family in pieces, the head first and then one for each series.

    `series` gives label text (not empty), fine bins (see `histogram.py`) and the sum in seconds.
    """
    yield _head(name, "histogram", help_text)
    bounds = [_number(bound) for bound in BUCKETS] + ["+Inf"]
    for label_text, bins, total_seconds in series:
        counts = cumulative(bins)
        lines = [
            f'{name}_bucket{{{label_text},le="{bound}"}} {count}\n'
            for bound, count in zip(bounds, counts, strict=True)
        ]
        lines.append(f"{name}_sum{{{label_text}}} {_number(total_seconds)}\n")
        lines.append(f"{name}_count{{{label_text}}} {counts[-1]}\n")
        yield "".join(lines)


def _head(name: str, kind: str, help_text: str) -> str:
    escaped = help_text.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _number(value: float) -> str:
    if isinstance(value, int) or math.isfinite(value):
        return repr(value)
    if math.isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"
