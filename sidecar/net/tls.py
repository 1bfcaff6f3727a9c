"""TLS as bytes in, bytes out: all that knows OpenSSL below the contexts.

`connection.py` drives a `TlsSession` over two memory BIOs. It must never touch a socket. uvloop's and
asyncio's own TLS transports are not used: they cannot half-close, cannot take bytes that were already
read, hide alerts, and keep hundreds of kilobytes a connection after a burst.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.net.peer import PeerInfo

RECORD = 16384
"""Most plaintext that one record holds (RFC 8446 section 5.1)."""

HEADER = 5
"""Bytes of a record's header; the last two are the length of what follows (RFC 8446 section 5.1)."""

MAX_FED = HEADER + RECORD + 256
"""The largest record that there may be (RFC 8446 section 5.2)."""

MAX_WRITTEN = 65536
"""What is encrypted at once, into several records, so that the BIO stays small enough for the caches."""

MAX_IDLE_BYTES = 65536
"""Bytes of records without application data (KeyUpdate, session tickets, empty records) that are taken
before the peer is held to be hostile. Each record with data pays for RECORD of them, so that record
padding (RFC 8446 section 5.4) is never mistaken for a flood."""

_ALERT = re.compile(r"(?:tlsv\d+|sslv3)_alert_(\w+)")
_REASONS = {
    "HTTP_REQUEST": "peer sent a plain HTTP request",
    "WRONG_VERSION_NUMBER": "peer does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "peer does not offer TLS 1.3",
    "UNEXPECTED_EOF_WHILE_READING": "peer closed without close_notify",
}


class TlsError(Exception):
    """The session cannot go on; the text says why. `TlsSession.take_output` has the alert to send."""


class TlsConfigError(Exception):
    """No context can be made from a configuration now; the text says what to do."""


class SslObject(ssl.SSLObject):
    """An SSLObject that remembers the server name that the client asked for."""

    sni: str = ""


def accept_any_peer(_: PeerInfo) -> str | None:
    """A `check_peer` that leaves it at the chain."""
    return None


@dataclass(frozen=True)
class TlsParameters:
    """How to secure a connection. `check_peer` returns what is wrong with the peer, or None."""

    context: ssl.SSLContext
    server_hostname: str | None = None
    alpn_required: tuple[str, ...] = ()
    """One of these must have been negotiated; empty: any, or none."""
    check_peer: Callable[[PeerInfo], str | None] = accept_any_peer
    identity: str = ""
    """First URI SAN of the certificate that is shown to the peer; "" when there is none."""


def make_context(server_side: bool) -> ssl.SSLContext:
    """An empty context with the mesh's rules: TLS 1.3 alone, no session tickets, no resumption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslobject_class = SslObject
    if server_side:
        context.num_tickets = 0
        context.sni_callback = _remember_sni
    return context


def _remember_sni(session: object, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(session, SslObject):
        session.sni = name or ""


def describe(error: ssl.SSLError) -> str:
    """An OpenSSL error in words; an alert from the peer by its name in RFC 8446 section 6."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    reason = getattr(error, "reason", None)
    if not reason:
        return str(error)
    alert = _ALERT.fullmatch(reason.lower())
    if alert:
        return f"peer sent TLS alert: {alert.group(1).replace('_', ' ')}"
    return _REASONS.get(reason) or reason.lower().replace("_", " ")


_thread = threading.local()


def _shared_bios() -> tuple[ssl.MemoryBIO, ssl.MemoryBIO]:
    """The thread's incoming and outgoing BIO, both empty."""
    bios: tuple[ssl.MemoryBIO, ssl.MemoryBIO] | None = getattr(_thread, "bios", None)
    if bios is None:
        bios = _thread.bios = (ssl.MemoryBIO(), ssl.MemoryBIO())
    return bios


class TlsSession:
    """One TLS connection, sans-IO. First `handshake` until it is done, then `decrypt` and `encrypt`.

    To be used in the thread that made it, whose sessions share their BIOs: those never shrink, and for
    records of full size would cost each connection 44 KB. So every method leaves both empty: nothing but
    whole records is fed to a session once its handshake is done, what OpenSSL does not take of an input is
    taken back, and its output is taken at once.
    """

    __slots__ = (
        "_idle_bytes",
        "_incoming",
        "_object",
        "_outgoing",
        "_output",
        "_read",
        "_tail",
        "_write",
        "close_sent",
        "error",
        "peer_closed",
    )

    def __init__(self, parameters: TlsParameters, server_side: bool) -> None:
        self._incoming, self._outgoing = _shared_bios()
        hostname = None if server_side else parameters.server_hostname
        self._object = parameters.context.wrap_bio(self._incoming, self._outgoing, server_side, hostname)
        self._read = self._object.read
        self._write = self._object.write
        self._tail = b""
        """What has come of a record that is not whole."""
        self._output = b""
        """What OpenSSL has to say and nobody has taken yet."""
        self._idle_bytes = 0
        self.peer_closed = False
        """The peer's close_notify has come: nothing more will be decrypted."""
        self.close_sent = False
        self.error = ""
        """Set by `decrypt`: why the session is dead."""

    def handshake(self, data: bytes) -> bytes | None:
        """Go on with the handshake on `data` (b"" starts a client's).

        None: more bytes are needed. Otherwise it is done, and what is returned is still to be given to
        `decrypt`, even when it is empty. Whatever the outcome, `take_output` has bytes to send. Raises
        TlsError.
        """
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return None  # OpenSSL keeps what it has read
        except ssl.SSLError as error:
            self._incoming.read()
            raise TlsError(describe(error)) from error
        finally:
            self._keep_output()
        # OpenSSL reads no further than it needs: what it left begins with a whole record.
        return self._incoming.read()

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """Plaintext that `data` completes; afterwards look at `peer_closed` and `error`. Never raises."""
        size = len(data)
        if self.peer_closed or self.error:
            return b""
        if self._tail or size < HEADER or size > MAX_FED or HEADER + (data[3] << 8 | data[4]) != size:
            return self._decrypt_records(data)
        self._incoming.write(data)
        try:
            plain = self._read(size)
        except ssl.SSLWantReadError:
            self._count_idle(size)
            self._keep_output()
            return b""
        except ssl.SSLError as error:
            self._end(error)
            return b""
        if not plain:
            self._end(None)
        elif self._idle_bytes:
            self._idle_bytes = max(0, self._idle_bytes + size - RECORD)
        return plain

    def _decrypt_records(self, data: bytes | memoryview) -> bytes:
        """Feed record by record, because every read that finds no whole one costs an exception."""
        parts: list[bytes] = []
        view = memoryview(data)
        size = len(data)
        write, read = self._incoming.write, self._read
        tail = self._tail
        pos = 0
        while pos < size and not self.error:
            known = len(tail)
            if known + size - pos < HEADER:
                tail += view[pos:]
                break
            if known:
                if known < HEADER:
                    pos += HEADER - known
                    tail += view[pos - HEADER + known : pos]
                    known = HEADER
                record = HEADER + (tail[3] << 8 | tail[4])
            else:
                record = HEADER + (data[pos + 3] << 8 | data[pos + 4])
            start = pos
            pos += record - known
            if pos > size and record <= MAX_FED:
                tail += view[start:]
                break
            if known:
                write(tail)
                tail = b""
            write(view[start:pos])
            try:
                plain = read(record)
            except ssl.SSLWantReadError:
                self._count_idle(record)
                self._keep_output()
                continue
            except ssl.SSLError as error:
                self._end(error)
                break
            if not plain:
                self._end(None)
                break
            parts.append(plain)
            if self._idle_bytes:
                self._count_idle(record - RECORD)
        self._tail = tail
        return b"".join(parts)

    def _end(self, error: ssl.SSLError | None) -> None:
        """Nothing more can be read; None and SSLZeroReturnError (after this side's own close_notify): the
        peer says that nothing comes."""
        if error is None or isinstance(error, ssl.SSLZeroReturnError):
            self.peer_closed = True
        else:
            self.error = describe(error)
        self._incoming.read()
        self._keep_output()

    def _keep_output(self) -> None:
        if self._outgoing.pending:
            self._output += self._outgoing.read()

    def _count_idle(self, change: int) -> None:
        self._idle_bytes = max(0, self._idle_bytes + change)
        if self._idle_bytes > MAX_IDLE_BYTES:
            self.error = f"peer sent more than {MAX_IDLE_BYTES} bytes of TLS records without application data"

    def encrypt(self, data: bytes) -> list[bytes]:
        """Records to write; `data` is not empty. Raises TlsError when the session is dead or closed by us."""
        if self._output:
            return [self.take_output(), *self.encrypt(data)]
        write, take = self._write, self._outgoing.read
        try:
            done = write(data if len(data) <= MAX_WRITTEN else memoryview(data)[:MAX_WRITTEN])
            records = [take()]
            while done < len(data):
                done += write(memoryview(data)[done : done + MAX_WRITTEN])
                records.append(take())
            return records
        except ssl.SSLError as error:
            self._keep_output()
            raise TlsError(describe(error)) from error

    def close_notify(self) -> bytes:
        """Records that tell the peer that no more data comes; reading goes on. b"" the second time."""
        if not self.close_sent and not self.error:
            self.close_sent = True
            try:
                self._object.unwrap()
            except ssl.SSLWantReadError:
                pass  # sent; the peer's own has not come yet
            except ssl.SSLError as error:
                self.error = describe(error)
            self._keep_output()
        return self.take_output()

    def take_output(self) -> bytes:
        """Records to write during and after the handshake: flights and alerts."""
        output, self._output = self._output, b""
        return output

    @property
    def alpn(self) -> str:
        return self._object.selected_alpn_protocol() or ""

    @property
    def sni(self) -> str:
        """Server side: the name that the client asked for, or empty."""
        return self._object.sni if isinstance(self._object, SslObject) else ""

    @property
    def peer_certificate(self) -> bytes | None:
        """DER, or None when the peer showed none."""
        return self._object.getpeercert(binary_form=True)

    def __repr__(self) -> str:
        state = self.error or ("peer closed" if self.peer_closed else "open")
        return f"<TlsSession {self._object.version()} alpn={self.alpn!r} {state}>"
