"""What happens to an accepted connection before it has a filter chain: Envoy's listener filters.

Made by `listener.py` for each connection of a listener that needs it, and by no other, so that plain
listeners pay nothing. Where the connection was redirected, its original destination takes the place of its
local address, and the listener that has that address takes the connection over. Then the client's first bytes
are looked at, if the choice of a filter chain depends on them, and stay where they are for the chain's codec
or TLS session.

A mesh peer may come before the listener for it has: discovery tells its sidecar of a Service before this one,
or this one has just started. It waits for the listener (`listener_addresses.py`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import SocketAddress
from sidecar.net.connection import Connection
from sidecar.net.handshakes import HANDSHAKE_TIMEOUT
from sidecar.net.tls import TlsConfigError
from sidecar.protocol.client_hello import ClientHello, ClientHelloParser
from sidecar.protocol.raw import RawCodec
from sidecar.protocol.sniff import Protocol
from sidecar.server.chain import TcpChain
from sidecar.server.detect import DetectCodec
from sidecar.server.filter_chain_match import Seen
from sidecar.server.filter_chains import FilterChain
from sidecar.server.tcp_proxy import TcpSession

if TYPE_CHECKING:
    from sidecar.server.listener import Listener

logger = logging.getLogger(__name__)

LISTENER_WAIT = 5.0
"""Seconds for which a mesh peer waits for a listener. Callers as a rule give up sooner."""


class Inspection:
    """`ConnectionOwner` of one connection until it has a filter chain, and TLS where that wants it."""

    __slots__ = (
        "_chains",
        "_chosen",
        "_conn",
        "_destination",
        "_detect",
        "_dialled",
        "_fed",
        "_listener",
        "_parser",
        "_timer",
        "_waits",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._chains = listener.chains
        self._conn: Connection | None = None
        self._destination: SocketAddress | None = None
        self._chosen: FilterChain | None = None
        self._dialled: tuple[TcpChain, RawCodec, TcpSession] | None = None
        """The application, which may have the first word, while the client has not said anything."""
        self._parser = ClientHelloParser()
        self._fed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._detect: DetectCodec | None = None
        self._waits = False
        """For a listener."""

    # --- ConnectionOwner -------------------------------------------------------------------------

    def on_secured(self, conn: Connection) -> None:
        if self._chosen is not None:  # the handshake is over
            self._finish(conn, self._chosen)
            return
        self._conn = conn
        config = self._listener.config
        if config.original_dst:
            self._restore(conn)
            if config.hand_off and self._destination is not None:
                self._hand_off(self._destination)
        self._listener.inspecting.add(conn)
        if self._listener.config.inspect_tls:
            self._inspect(conn)
        else:
            self._choose(conn, Seen(conn.peer.local[1]))

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("there is a codec, or TLS has not come up")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._leave()
        if self._chosen is not None and self._chosen.tls is not None:
            self._listener.note_tls_failure(reason)

    # --- where it was going ----------------------------------------------------------------------

    def _restore(self, conn: Connection) -> None:
        found = conn.original_destination()
        if found is not None and found != conn.peer.local:
            self._destination = SocketAddress(*found)
            conn.peer.local = found

    def _hand_off(self, destination: SocketAddress) -> None:
        other = self._listener.addresses.find(destination)
        if other is not None and other is not self._listener:
            self._go_to(other)

    def _go_to(self, listener: Listener) -> None:
        listener.stats.connections_opened += 1
        self._listener = listener
        self._chains = listener.chains

    def _is_early(self) -> bool:
        """Whether this is a mesh peer that calls a port of which discovery has not told."""
        hello = self._parser.hello
        return (
            self._listener.config.hand_off
            and self._destination is not None
            and hello is not None
            and MESH_ALPN in hello.alpn
        )

    def _find_or_wait(self) -> None:
        """Its listener may have come since the connection was accepted."""
        assert self._conn is not None
        assert self._destination is not None
        found = self._listener.addresses.find(self._destination)
        if found is not None:
            self._move_to(found)
            return
        logger.info(
            "listener %s: mesh peer %s waits for the listener of %s",
            self._listener.config.name,
            self._conn.peer.remote_text,
            self._destination,
        )
        self._waits = True
        self._stop_timer()
        self._abandon()
        self._listener.addresses.wait(self._destination, self._on_listener)
        self._timer = asyncio.get_running_loop().call_later(LISTENER_WAIT, self._on_no_listener)

    def _on_listener(self, listener: Listener) -> None:
        assert self._detect is not None
        self._waits = False
        self._move_to(listener)
        self._detect.decide(Protocol.TLS)

    def _move_to(self, listener: Listener) -> None:
        assert self._conn is not None
        self._listener.inspecting.discard(self._conn)
        listener.inspecting.add(self._conn)
        self._go_to(listener)

    def _on_no_listener(self) -> None:
        assert self._conn is not None
        listener = self._listener
        listener.stats.no_filter_chain_match += 1
        logger.warning(
            "listener %s closes a connection from mesh peer %s to %s: no Service and no container port that "
            "discovery knows is there",
            listener.config.name,
            self._conn.peer.remote_text,
            self._destination,
        )
        self._leave()
        self._conn.close("no listener for a mesh peer")

    # --- what it begins with ---------------------------------------------------------------------

    def _inspect(self, conn: Connection) -> None:
        loop = asyncio.get_running_loop()
        timeout = self._listener.config.listener_filters_timeout
        if timeout:
            self._timer = loop.call_later(timeout, self._on_timeout)
        # With `on_silence` a client that ends before it has said anything keeps its connection.
        self._detect = DetectCodec(self._detected, self._closed, self._ignore_silence, self._sniff)
        conn.set_codec(self._detect)

    def _sniff(self, data: bytes) -> Protocol:
        if self._dialled is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._detected, None)
        new, self._fed = data[self._fed :], len(data)
        protocol = self._parser.feed(new)
        if not self._waits and self._is_early():
            self._find_or_wait()
        return Protocol.NEED_MORE if self._waits else protocol

    def _ignore_silence(self) -> None:
        """The time limit is this class's own."""

    def _on_timeout(self) -> None:
        """The client is silent, or its ClientHello is under way. It has the time of a handshake, except where
        the other side may have the first word: there that is dialled, and whoever speaks first decides. So a
        busy peer whose hello is late is not taken for a client in plain text."""
        assert self._conn is not None
        listener, self._timer = self._listener, None
        listener.stats.detect_timeouts += 1
        if not listener.config.continue_on_timeout:
            self._conn.close(f"nothing was said for {listener.config.listener_filters_timeout:g} s")
            return
        plain = self._chains.select(self._seen(None))
        if not self._fed and plain is not None and plain.tls is None and isinstance(plain.chain, TcpChain):
            codec, session = plain.chain.dial(self._conn, self._destination)
            self._dialled = (plain.chain, codec, session)
            if codec.should_close:
                self._detected(None)
            else:
                codec.on_output = self._on_application
        else:
            self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._detected, None)

    def _on_application(self) -> None:
        """It has spoken, or could not be reached, or is gone."""
        self._detected(None)

    def _detected(self, protocol: Protocol | None) -> None:
        assert self._conn is not None
        if self._waits:  # it has ended its half instead
            self._leave()
            self._conn.close("a mesh peer left before there was a listener")
            return
        self._stop_timer()
        if self._dialled is not None:
            self._dialled[1].on_output = _nothing
        self._choose(self._conn, self._seen(self._parser.hello if protocol is Protocol.TLS else None))

    def _seen(self, hello: ClientHello | None) -> Seen:
        assert self._conn is not None
        port = self._conn.peer.local[1]
        return Seen(port) if hello is None else Seen(port, "tls", hello.server_name, hello.alpn)

    def _closed(self, reason: str) -> None:
        self._leave()

    # --- who takes it ----------------------------------------------------------------------------

    def _choose(self, conn: Connection, seen: Seen) -> None:
        listener = self._listener
        chosen = self._chains.select(seen)
        if chosen is None:
            self._leave()
            listener.stats.no_filter_chain_match += 1
            logger.warning(
                "listener %s closes a connection from %s to %s: no filter chain takes %s",
                listener.config.name,
                conn.peer.remote_text,
                SocketAddress(*conn.peer.local),
                self._describe(seen),
            )
            conn.close("no filter chain matches")
            return
        self._chosen = chosen
        if chosen.tls is None:
            self._finish(conn, chosen)
            return
        self._abandon()
        try:
            conn.start_tls(chosen.tls())
        except TlsConfigError as error:
            logger.error("listener %s drops a connection: %s", listener.config.name, error)
            conn.abort(str(error))

    def _describe(self, seen: Seen) -> str:
        if seen.transport_protocol == "tls":
            return f"TLS with ALPN {', '.join(seen.application_protocols) or 'none'}"
        return "plain text" if self._listener.config.inspect_tls else "connections to it"

    def _finish(self, conn: Connection, chosen: FilterChain) -> None:
        dialled = self._dialled
        if dialled is not None and dialled[0] is chosen.chain:
            self._dialled = None
            self._leave()
            dialled[0].serve(conn, dialled[1])
        else:
            self._leave()
            chosen.chain.on_connection(conn, self._destination)

    def _leave(self) -> None:
        self._stop_timer()
        self._abandon()
        if self._waits:
            self._waits = False
            self._listener.addresses.cancel(self._on_listener)
        if self._conn is not None:
            self._listener.inspecting.discard(self._conn)

    def _abandon(self) -> None:
        if self._dialled is not None:
            self._dialled[1].on_output = _nothing
            self._dialled[2].abandon()
            self._dialled = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __repr__(self) -> str:
        return f"<Inspection {self._conn!r} {self._parser!r} chosen={self._chosen!r}>"


def _nothing() -> None:
    """Until the connection sets its own callback."""
