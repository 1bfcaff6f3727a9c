"""Listeners by address: who takes a connection that was redirected on its way there.

Filled by `listener_manager.py`, asked by `inspection.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sidecar.config.resources import SocketAddress

if TYPE_CHECKING:
    from sidecar.server.listener import Listener

OnListener = Callable[["Listener"], None]


class ListenerAddresses:
    """`find` a listener, or `wait` for one that discovery has not told of yet."""

    def __init__(self) -> None:
        self._listeners: dict[SocketAddress, Listener] = {}
        self._waiting: dict[OnListener, SocketAddress] = {}

    def update(self, listeners: Iterable[Listener]) -> None:
        """All that there are. Those who waited for a new one are called."""
        self._listeners = {
            address: listener
            for listener in listeners
            for address in (listener.config.address, *listener.config.additional_addresses)
            if address is not None
        }
        for callback, address in [*self._waiting.items()]:
            found = self.find(address)
            if found is not None and self._waiting.pop(callback, None) is not None:
                callback(found)

    def find(self, address: SocketAddress) -> Listener | None:
        """That of the address, else that of all addresses at its port."""
        found = self._listeners.get(address)
        if found is None:
            wildcard = "::" if ":" in address.host else "0.0.0.0"
            found = self._listeners.get(SocketAddress(wildcard, address.port))
        return found

    def wait(self, address: SocketAddress, callback: OnListener) -> None:
        """Calls back once, when there is one."""
        self._waiting[callback] = address

    def cancel(self, callback: OnListener) -> None:
        """Does nothing when it was called already."""
        self._waiting.pop(callback, None)

    def __repr__(self) -> str:
        return f"<ListenerAddresses {[*map(str, self._listeners)]} waiting={len(self._waiting)}>"
