"""HTTP filters: what may answer a request before the router sees it, and is told when it was answered.

Called by the exchange. Filters run in order, synchronously; what must wait does not belong here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidecar.http.exchange import Exchange
    from sidecar.http.local_reply import LocalReply


class HttpFilter(Protocol):
    def on_request(self, exchange: Exchange) -> LocalReply | None:
        """None lets the request pass; a reply answers it, and no later filter sees it."""

    def on_response(self, exchange: Exchange) -> None:
        """Once for each request that was let pass: when its response head has come or was made here, or when
        it ends without one."""


def admit(
    filters: tuple[HttpFilter, ...], exchange: Exchange
) -> tuple[tuple[HttpFilter, ...], LocalReply | None]:
    """The filters that let the request pass, and the reply of the first that did not."""
    for i, each in enumerate(filters):
        reply = each.on_request(exchange)
        if reply is not None:
            return filters[:i], reply
    return filters, None
