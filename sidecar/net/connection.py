"""Drives a codec over one TCP connection, with or without TLS.

Listeners make server-side connections, `connect.py` client-side ones. Bytes go socket → `TlsSession` →
`Codec.receive`, and once a loop turn `Codec.take_output` → `TlsSession` → socket. On this path there are
no tasks and no futures. Nothing here may know what a codec's bytes mean.

Longer than most files because the life of a socket (handshake, half-close, lingering close, back-pressure
both ways) is one state machine that reads badly in pieces.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import cast

from sidecar.net.certificates import NO_CERTIFICATE
from sidecar.net.connection_types import (
    CatchesUp,
    ConnectError,
    ConnectionOwner,
    HalfClosing,
    LeavesBytes,
    TakesViews,
)
from sidecar.net.handshakes import Handshake
from sidecar.net.loop_shared import READ_SIZE, shared_of
from sidecar.net.original_dst import original_destination
from sidecar.net.peer import PeerInfo
from sidecar.net.peer_watch import PeerWatch
from sidecar.net.sockets import describe
from sidecar.net.tls import TlsError, TlsParameters, TlsSession
from sidecar.protocol.events import BULK, Codec

BULK_READ = 8192
"""Above this a codec that can is given a view: it saves a copy, though slicing it costs more than bytes."""
TINY_RECORD = 64
"""Bytes: a read full of TLS records below this on average takes many times as long as others, so it ends the
connection's turn, and the next ones are smaller."""
READS_A_TURN = 4
"""Of a connection that has more to say each time; the loop would read 32 times before it looks at others."""
PARTS_A_TURN = 8
"""Of a codec's output, BULK bytes each, that are enciphered and written before others have their turn."""
MAX_UNREAD = 65536
"""Bytes kept for a codec that is not set yet; past it the socket is not read."""
WRITE_HIGH_WATER = 65536
WRITE_LOW_WATER = 16384
MAX_STALLS = 10
"""Looks without progress after which output that a closed connection still holds is given up."""

_NOBODY = PeerInfo(("", 0), ("", 0))
_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds


class Connection(asyncio.BufferedProtocol):
    """One TCP connection. Make server-side ones in a listener's protocol factory, others with `connect`."""

    __slots__ = (
        "_buffer",
        "_catching_up",
        "_close_wanted",
        "_closing",
        "_eof_told",
        "_flush_scheduled",
        "_full_reads",
        "_half_closing",
        "_handshake",
        "_lingering",
        "_loop",
        "_next_codec",
        "_owner",
        "_peer_eof",
        "_peer_watch",
        "_read_paused",
        "_reason",
        "_receiving",
        "_reported",
        "_server_side",
        "_session",
        "_shared",
        "_takes_views",
        "_tls",
        "_transport",
        "_turn_over",
        "_unread",
        "_waiter",
        "_write_paused",
        "_written_eof",
        "codec",
        "peer",
        "sni",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: ConnectionOwner,
        tls: TlsParameters | None,
        server_side: bool,
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        """`waiter` is for `connect`: done when secured, failed with ConnectError when that fails."""
        self.peer = _NOBODY
        self.codec: Codec | None = None
        self.sni = ""
        self._loop = loop
        self._shared = shared_of(loop)
        self._buffer = self._shared.buffer
        self._owner = owner
        self._tls = tls
        self._server_side = server_side
        self._waiter = waiter
        self._transport: asyncio.Transport | None = None
        self._session: TlsSession | None = None
        self._unread = b""
        self._next_codec: Codec | None = None
        self._reason = ""
        self._handshake: Handshake | None = None
        self._lingering: tuple[int, int] | None = None
        """Since it is closed: bytes unwritten at the last look, and looks without progress."""
        self._receiving = False
        self._flush_scheduled = False
        self._read_paused = False
        self._full_reads = 0
        """Reads that filled at least the smaller buffer, since the last turn that they ended."""
        self._turn_over = False
        self._write_paused = False
        self._half_closing = False
        self._takes_views = False
        self._catching_up: CatchesUp | None = None
        """The codec, if it is one that does."""
        self._written_eof = False
        self._peer_eof = False
        self._peer_watch: PeerWatch | None = None
        self._eof_told = False
        self._close_wanted = False
        self._closing = False
        self._reported = False

    # --- what owners call

    @property
    def connected(self) -> bool:
        """Whether there has been a TCP connection."""
        return self.peer is not _NOBODY

    @property
    def local_identity(self) -> str:
        """SPIFFE id that the peer was shown, "" without one."""
        return self._tls.identity if self._tls is not None else ""

    def start_tls(self, tls: TlsParameters) -> None:
        """Server side, in `on_unread` or from a codec that only looked at what was read so far, which begins
        a TLS handshake. `on_secured` follows."""
        old, self.codec = self.codec, None
        if self._session is not None or not (old is None or hasattr(old, "take_leftover")):
            raise RuntimeError(f"{self!r} cannot start TLS: it has a codec or TLS already")
        if old is not None:
            self._retire(old)
        self._tls = tls
        self._session = TlsSession(tls, self._server_side)
        self._handshake = Handshake(
            self._shared.handshakes,
            self._loop.time(),
            self._session,
            self._on_handshake_step,
            self._fail_handshake,
        )
        data = self.take_unread()
        if data or not self._server_side:
            self._handshake.feed(data)
        if self._peer_eof:
            self._fail_handshake("peer closed the connection")

    def original_destination(self) -> tuple[str, int] | None:
        """Where the peer was going, if the kernel knows; see `net/original_dst.py`."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return original_destination(sock, ":" in self.peer.local[0]) if sock is not None else None

    def set_codec(self, codec: Codec) -> None:
        """Let `codec` have the connection, starting with the bytes not read yet. Called again, it swaps
        codecs: the old one's output is written first, and what it left unread goes to the new one."""
        codec.on_output = self._on_output
        codec.on_read_pause = self._on_read_pause
        if self._receiving:
            self._next_codec = codec  # its turn comes when the old codec's `receive` has returned
            return
        old, self.codec = self.codec, codec
        if old is not None:
            self._retire(old)
        if self._closing:
            self._reported = True
            codec.connection_lost(self._reason or "connection closed")
            return
        self._half_closing = hasattr(codec, "want_eof")
        self._takes_views = hasattr(codec, "takes_views")
        self._catching_up = cast(CatchesUp, codec) if hasattr(codec, "catch_up") else None
        self._buffer = self._shared.bulk_buffer if self._takes_views else self._shared.buffer
        if hasattr(codec, "opaque") and self._peer_watch is None and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            self._peer_watch = PeerWatch(self._loop, self._shared.looks, sock, self.abort)
        self._eof_told = False
        if self._read_paused:
            self._on_read_pause(False)
        if self._write_paused:
            codec.pause_output()
        codec.start()
        data, self._unread = self._unread, b""
        if data:
            self._feed(data)
        else:
            self._flush()
        ended = self._peer_eof or (self._session is not None and self._session.peer_closed)
        if ended and not self._closing:
            self._receive_eof()

    def take_unread(self) -> bytes:
        """The bytes that came before a codec was set; they will not be given to it."""
        data, self._unread = self._unread, b""
        return data

    def flush(self) -> None:
        """Write the codec's output now rather than at the end of this loop turn."""
        if self.codec is not None and not self._receiving:
            self._flush()

    def close(self, reason: str = "") -> None:
        """Write what the codec has, then close_notify, then FIN. The codec's `connection_lost`, or the
        owner's `on_lost`, comes when the socket is gone."""
        if self._receiving:
            self._close_wanted = True
            self._reason = self._reason or reason
            return
        if self._closing:
            return
        if self.codec is not None:
            self._write_output(self.codec)
        self._reason = self._reason or reason or "closed by this side"
        self._begin_close()

    def abort(self, reason: str = "") -> None:
        """Drop the connection with RST; nothing more is written."""
        self._reason = self._reason or reason or "aborted by this side"
        self._closing = True
        transport = self._transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        transport.abort()

    def write_eof(self) -> None:
        """Say that no more is written (close_notify over TLS, else FIN) and go on reading."""
        transport = self._transport
        if self._written_eof or self._closing or transport is None:
            return
        self._written_eof = True
        if self._session is None:
            transport.write_eof()
        else:
            transport.write(self._session.close_notify())

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # uvloop's own low mark is 16 bytes: the socket would run dry before the codec may go on.
        self._transport.set_write_buffer_limits(WRITE_HIGH_WATER, WRITE_LOW_WATER)
        remote = transport.get_extra_info("peername") or ("", 0)
        local = transport.get_extra_info("sockname") or ("", 0)
        self.peer = PeerInfo((remote[0], remote[1]), (local[0], local[1]))
        if self._closing:  # closed before it was made
            self._transport.abort()
        elif self._tls is not None:
            self.start_tls(self._tls)
        else:
            self._on_secured()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop is to put what it reads next."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` bytes are in the buffer. TLS takes them from there; a codec keeps slices of its own."""
        if self._closing:
            return
        if nbytes >= READ_SIZE:
            self._full_reads += 1
            if self._full_reads >= READS_A_TURN:
                self._end_turn()
        session = self._session
        if session is None:
            data: bytes | memoryview = self._buffer[:nbytes]
        else:
            if self._handshake is not None:
                if self._handshake.feed(bytes(self._buffer[:nbytes])) >= MAX_UNREAD:
                    self._on_read_pause(True)
                return
            data = session.decrypt(self._buffer[:nbytes])
            if session.error or session.peer_closed:
                self._deliver_last(session, bytes(data))
                return
            if nbytes >= READ_SIZE:
                self._suit_buffer(session.records * TINY_RECORD > nbytes)
            if not data:
                return
        codec = self.codec
        if codec is None:
            self._keep_unread(bytes(data))
            self._owner.on_unread(self, self._unread)
            return
        self._receiving = True
        if self._takes_views and nbytes > BULK_READ:
            cast(TakesViews, codec).receive(data)
        else:
            codec.receive(bytes(data))
        self._receiving = False
        self._flush()

    def eof_received(self) -> bool:
        """Returns whether the socket stays open for writing."""
        self._peer_eof = True
        if self._closing:
            return False
        session = self._session
        if self._handshake is not None:
            self._handshake.feed_eof()
            if self._closing:
                return False
        if self._handshake is not None:
            self._fail_handshake("peer closed the connection")
        elif session is not None:
            if not session.peer_closed:
                self._fail("TLS connection truncated: peer closed TCP without close_notify")
        elif self.codec is None:
            self._fail("peer closed the connection")
        else:
            self._receive_eof()
        return not self._closing

    def pause_writing(self) -> None:
        self._write_paused = True
        if self.codec is not None:
            self.codec.pause_output()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self.codec is not None:
            self.codec.resume_output()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._lingering is not None:
            self._shared.lingers.end(self)
        if self._peer_watch is not None:
            self._peer_watch.stop()
        if exc is not None and not self._reason:
            self._reason = describe(exc)
        if self._handshake is not None:
            self._reason = self._handshake_failure(self._reason or "peer closed the connection")
        self._transport = None
        self._report()

    # --- TLS

    def _on_handshake_step(self, rest: bytes | None) -> None:
        session, transport = self._session, self._transport
        assert session is not None
        if self._closing or transport is None:
            return
        self._on_read_pause(False)
        if rest is None:
            self._write_session_output(session)
            return
        problem = self._identify_peer(session)
        if problem:
            self._fail_handshake(problem)
            return
        try:
            # What came with the end of the handshake is there before the codec, so that what the codec says
            # first and what it answers leave together.
            self._unread = bytes(session.decrypt(rest))
            self._on_secured()
            if self._unread and not self._closing:
                self._owner.on_unread(self, self._unread)
            if session.error or session.peer_closed:
                self._deliver_last(session, b"")
            # What ends the handshake goes with what the codec has said, if it has.
            self._write_session_output(session)
        except BaseException:
            self.abort("internal error")  # as the loop does when `buffer_updated` raises
            raise

    def _write_session_output(self, session: TlsSession) -> None:
        output = session.take_output()
        if output and self._transport is not None:
            self._transport.write(output)

    def _identify_peer(self, session: TlsSession) -> str | None:
        assert self._tls is not None
        alpn, required = session.alpn, self._tls.alpn_required
        if required and alpn not in required:
            return f"ALPN: peer agreed to {alpn or 'none'}, needed is {' or '.join(required)}"
        try:
            certificate = session.peer_certificate or NO_CERTIFICATE
        except ValueError as error:
            return f"peer's certificate cannot be read: {error}"
        self.sni = session.sni
        peer = self.peer
        peer.tls, peer.alpn = True, alpn
        peer.uri_sans, peer.cert_sha256 = certificate.uri_sans, certificate.sha256
        return self._tls.check_peer(peer)

    def _on_secured(self) -> None:
        if self._handshake is not None:
            self._handshake.stop()
            self._handshake = None
        waiter, self._waiter = self._waiter, None
        self._owner.on_secured(self)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail_handshake(self, reason: str) -> None:
        self._fail(self._handshake_failure(reason))

    def _handshake_failure(self, reason: str) -> str:
        return f"TLS handshake with {self.peer.remote_text} failed: {reason}"

    # --- to the codec

    def _keep_unread(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) >= MAX_UNREAD:
            self._on_read_pause(True)

    def _deliver(self, data: bytes) -> None:
        if self._closing:
            return
        if self.codec is None:
            self._keep_unread(data)
            self._owner.on_unread(self, self._unread)
        else:
            self._feed(data)

    def _deliver_last(self, session: TlsSession, data: bytes) -> None:
        """What came in one piece with the peer's close_notify or a fatal error, then that end itself."""
        if data:
            self._deliver(data)
        if self._closing:
            return
        if session.error:
            self._fail(f"TLS connection with {self.peer.remote_text} failed: {session.error}")
        elif self.codec is None:
            self._fail("peer closed the connection")
        else:
            self._receive_eof()

    def _feed(self, data: bytes) -> None:
        codec = self.codec
        assert codec is not None
        self._call(codec.receive, data)
        self._flush()

    def _call(self, receive: Callable[..., None], *data: bytes) -> None:
        """Of a codec, which raises only where it has a bug: that is the end, as if the loop had called it."""
        self._receiving = True
        try:
            receive(*data)
        except BaseException:
            self.abort("internal error")
            raise
        self._receiving = False

    def _receive_eof(self) -> None:
        """FIN or close_notify, of which a codec hears once."""
        codec = self.codec
        assert codec is not None
        if self._eof_told:
            return
        self._eof_told = True
        self._call(codec.receive_eof)
        self._flush()
        catching_up = self._catching_up
        if self._closing or self._half_closing or (catching_up is not None and catching_up.behind):
            return
        if not codec.active_streams:
            self._write_output(codec)
            self._reason = "peer closed the connection"
            self._begin_close()

    def _retire(self, old: Codec) -> None:
        self._write_output(old)
        old.on_output = _nothing
        old.on_read_pause = _ignore
        if hasattr(old, "take_leftover"):
            self._unread = cast(LeavesBytes, old).take_leftover()

    def _report(self) -> None:
        """Tell whoever is concerned, once, that the connection has ended."""
        if self._reported:
            return
        self._reported = True
        if self._handshake is not None:
            self._handshake.stop()
            self._handshake = None
        reason = self._reason or ("peer closed the connection" if self._peer_eof else "connection closed")
        codec = self.codec
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_exception(ConnectError(reason, "tcp" if self._session is None else "tls"))
        elif codec is None:
            self._owner.on_lost(self, reason)
        else:
            codec.on_output = _nothing
            codec.on_read_pause = _ignore
            try:
                if not self._server_side:
                    self._finish(codec)
            finally:
                codec.connection_lost(reason)

    def _finish(self, codec: Codec) -> None:
        """What a server has answered before the end counts; what a client has asked for helps it no more."""
        catching_up = self._catching_up
        if catching_up is not None and catching_up.behind:
            codec.drain(False)  # or what waits for a stream would get one
            while catching_up.behind:
                self._call(catching_up.catch_up)

    # --- to the socket

    def _on_output(self) -> None:
        if not self._flush_scheduled and not self._receiving:
            self._flush_scheduled = True
            self._shared.flushes.add(self)

    def scheduled_flush(self) -> None:
        self._flush_scheduled = False
        transport, catching_up = self._transport, self._catching_up
        if transport is None or transport.is_closing():
            return
        try:
            if catching_up is not None and catching_up.behind and not self._closing:
                self._call(catching_up.catch_up)
            self._flush()
        except BaseException:
            self.abort("internal error")
            raise

    def _flush(self) -> None:
        if self._next_codec is not None:
            codec, self._next_codec = self._next_codec, None
            self.set_codec(codec)  # which flushes both
            return
        active = self.codec
        if self._closing or active is None:
            return
        data = active.take_output()
        if data:
            self._write(data)
            if len(data) >= BULK and self._write_output(active, PARTS_A_TURN - 1):
                self._on_output()
                return
        catching_up = self._catching_up
        if catching_up is not None and catching_up.behind:
            self._on_output()
        if active.should_close or self._close_wanted:
            if getattr(active, "abort", False) is True:
                self.abort()
            else:
                self._begin_close()
        elif self._half_closing and cast(HalfClosing, active).want_eof:
            self.write_eof()

    def _write_output(self, codec: Codec, parts: int = sys.maxsize) -> bool:
        """At most `parts` of it, BULK bytes or a little more each; whether there may be others."""
        while parts:
            data = codec.take_output()
            if data:
                self._write(data)
            if len(data) < BULK:
                return False
            parts -= 1
        return True

    def _write(self, data: bytes) -> None:
        transport, session = self._transport, self._session
        if transport is None:
            return
        if session is not None:
            try:
                records = session.encrypt(data)
            except TlsError as error:
                self._fail(f"TLS connection with {self.peer.remote_text} failed: {error}")
                return
            transport.writelines(records)
        else:
            transport.write(data)

    def _on_read_pause(self, paused: bool) -> None:
        transport = self._transport
        if paused is self._read_paused or transport is None:
            return
        self._read_paused = paused
        if self._turn_over or self._peer_eof or transport.is_closing():
            return
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _suit_buffer(self, tiny_records: bool) -> None:
        if tiny_records:
            self._buffer = self._shared.buffer
            self._end_turn()
        elif self._takes_views:
            self._buffer = self._shared.bulk_buffer

    def _end_turn(self) -> None:
        """Read no more until the loop has been at the other connections."""
        transport = self._transport
        if self._turn_over or transport is None or transport.is_closing():
            return
        self._turn_over = True
        self._full_reads = 0
        if not self._read_paused:
            transport.pause_reading()
        self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._turn_over = False
        transport = self._transport
        if transport is None or self._read_paused or self._peer_eof or transport.is_closing():
            return
        transport.resume_reading()

    def _fail(self, reason: str) -> None:
        """The connection is of no more use: say so to the peer (TLS alert, FIN) and to the codec."""
        if self._closing:
            return
        self._reason = reason
        self._begin_close()
        self._report()

    def _begin_close(self) -> None:
        if self._closing:
            return
        self._closing = True
        transport, session = self._transport, self._session
        if transport is None or transport.is_closing():
            return
        if session is not None:
            data = session.close_notify()
            if data:
                transport.write(data)
        self._on_read_pause(False)
        if self._peer_eof or (session is not None and session.peer_closed):
            transport.close()
        elif session is not None or not self._written_eof:
            transport.write_eof()
        self._lingering = (transport.get_write_buffer_size(), 0)
        self._shared.lingers.begin(self, self._loop.time())

    def on_timeout(self, _: float) -> None:
        """It lingers: is there progress."""
        transport = self._transport
        if transport is None or self._lingering is None:
            return
        size_before, stalls = self._lingering
        size = transport.get_write_buffer_size()
        if not size:
            transport.close()
            return
        stalls = 0 if size < size_before else stalls + 1
        if stalls >= MAX_STALLS:
            self.abort("peer does not read")
            return
        self._lingering = (size, stalls)
        self._shared.lingers.begin(self, self._loop.time())

    def __repr__(self) -> str:
        side = "server" if self._server_side else "client"
        state = "closed" if self._transport is None else "closing" if self._closing else "open"
        if self._handshake is not None:
            state = "handshaking"
        return f"<Connection {side} {self.peer.local} {self.peer.remote} {state} codec={self.codec!r}>"


def _nothing() -> None:
    pass


def _ignore(_: bool) -> None:
    pass
