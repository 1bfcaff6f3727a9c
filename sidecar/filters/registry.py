"""Which filter stands for which configuration. A new filter is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sidecar.config.resources import AdaptiveConcurrency, FilterConfig
from sidecar.filters.adaptive_concurrency import AdaptiveConcurrencyFilter
from sidecar.http.filter_chain import HttpFilter

_MAKERS: dict[type[object], Callable[[Any], HttpFilter]] = {
    AdaptiveConcurrency: AdaptiveConcurrencyFilter,
}


def make_filters(configs: Iterable[FilterConfig]) -> tuple[HttpFilter, ...]:
    """The filters of one listener, in order; each has a state of its own."""
    return tuple(_MAKERS[type(each.config)](each.config) for each in configs)
