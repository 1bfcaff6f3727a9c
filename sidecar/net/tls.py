"""TLS as bytes in, bytes out.

`connection.py` drives a `TlsSession`, which must never touch a socket. uvloop's and asyncio's own TLS
transports are not used: they cannot half-close, cannot take bytes that were already read, hide alerts, and
keep hundreds of kilobytes a connection after a burst.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.net.certificates import PeerCertificate, read_peer
from sidecar.net.openssl import ffi, last_error, lib
from sidecar.net.peer import PeerInfo
from sidecar.net.tls_context import TlsContext

RECORD = 16384
"""Most plaintext that one record holds (RFC 8446 section 5.1)."""

HEADER = 5
"""Bytes of a record's header; the last two are the length of what follows (RFC 8446 section 5.1)."""

MAX_FED = HEADER + RECORD + 256
"""The largest record that there may be (RFC 8446 section 5.2)."""

MAX_WRITTEN = 262144
"""What is encrypted at once, into several records."""

MAX_READ = 262144
"""What is decrypted at once."""

BULK = 8192
"""Above this copies cost more than calls, and a BIO that has held so much is replaced: none ever shrinks."""

MAX_IDLE_BYTES = 65536
"""Bytes of records without application data (KeyUpdate, session tickets, empty records) that are taken
before the peer is held to be hostile. Each record with data pays for RECORD of them, so that record
padding (RFC 8446 section 5.4) is never mistaken for a flood."""

_ALERT = re.compile(r"(?:tlsv[\d.]+|sslv3|ssl/tls|tls) alert (.+)")
_REASONS = {
    "http request": "peer sent a plain HTTP request",
    "wrong version number": "peer does not speak TLS",
    "unsupported protocol": "peer does not offer TLS 1.3",
    "unexpected eof while reading": "peer closed without close_notify",
}
_CERTIFICATE_REFUSED = "certificate verify failed"


class TlsError(Exception):
    """The session cannot go on; the text says why. `TlsSession.take_output` has the alert to send."""


class TlsConfigError(Exception):
    """No context can be made from a configuration now; the text says what to do."""


def accept_any_peer(_: PeerInfo) -> str | None:
    """A `check_peer` that leaves it at the chain."""
    return None


@dataclass(frozen=True)
class TlsParameters:
    """How to secure a connection. `check_peer` returns what is wrong with the peer, or None."""

    context: TlsContext
    server_hostname: str | None = None
    alpn_required: tuple[str, ...] = ()
    """One of these must have been negotiated; empty: any, or none."""
    check_peer: Callable[[PeerInfo], str | None] = accept_any_peer
    identity: str = ""
    """First URI SAN of the certificate that is shown to the peer; "" when there is none."""


def describe(reason: str) -> str:
    """OpenSSL's reason in other words; an alert from the peer by its name in RFC 8446 section 6."""
    alert = _ALERT.fullmatch(reason)
    if alert:
        return f"peer sent TLS alert: {alert.group(1)}"
    return _REASONS.get(reason, reason)


class _Scratch(threading.local):
    """Where a thread's sessions put what OpenSSL gives: plaintext, until the next `decrypt`; and records, to
    be copied at once."""

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(MAX_READ + MAX_FED))
        self.plain_address = ffi.from_buffer(self.plain)
        self.records = memoryview(bytearray(MAX_WRITTEN + MAX_WRITTEN // RECORD * (HEADER + 256)))
        self.records_address = ffi.from_buffer(self.records)


_scratch = _Scratch()
_SSL_read, _SSL_write, _SSL_get_error = lib.SSL_read, lib.SSL_write, lib.SSL_get_error
_BIO_read, _BIO_write = lib.BIO_read, lib.BIO_write
_WANT_READ, _ZERO_RETURN = lib.SSL_ERROR_WANT_READ, lib.SSL_ERROR_ZERO_RETURN
_MEMORY = lib.BIO_s_mem()


class TlsSession:
    """One TLS connection, sans-IO. First `handshake` until it is done, then `decrypt` and `encrypt`.

    To be used in the thread that made it. Its BIOs are empty when a method returns: nothing but whole records
    is fed to it once its handshake is done, and its output is taken at once.
    """

    __slots__ = (
        "_context",
        "_idle_bytes",
        "_incoming",
        "_outgoing",
        "_output",
        "_plain",
        "_plain_address",
        "_records",
        "_records_address",
        "_ssl",
        "_tail",
        "close_sent",
        "error",
        "peer_closed",
        "records",
    )

    def __init__(self, parameters: TlsParameters, server_side: bool) -> None:
        self._context = parameters.context  # OpenSSL calls back into it
        self._ssl = self._context.new_session(None if server_side else parameters.server_hostname)
        self._incoming: Any = None
        self._outgoing: Any = None
        self._new_bios()
        # Not the thread-local object itself: finding a thread's attributes costs as much as a small record.
        self._plain, self._plain_address = _scratch.plain, _scratch.plain_address
        self._records, self._records_address = _scratch.records, _scratch.records_address
        self._tail = b""
        """What has come of a record that is not whole."""
        self._output = b""
        """What OpenSSL has to say and nobody has taken yet."""
        self._idle_bytes = 0
        self.peer_closed = False
        """The peer's close_notify has come: nothing more will be decrypted."""
        self.close_sent = False
        self.records = 0
        """Whole ones in the last piece above BULK that was given to `decrypt`."""
        self.error = ""
        """Set by `decrypt`: why the session is dead."""

    def _new_bios(self) -> None:
        """Both empty; the session owns them, and frees those that it had."""
        self._incoming, self._outgoing = lib.BIO_new(_MEMORY), lib.BIO_new(_MEMORY)
        lib.SSL_set_bio(self._ssl, self._incoming, self._outgoing)

    def handshake(self, data: bytes) -> bytes | None:
        """Go on with the handshake on `data` (b"" starts a client's).

        None: more bytes are needed. Otherwise it is done, and what is returned is still to be given to
        `decrypt`, even when it is empty. Whatever the outcome, `take_output` has bytes to send. Raises
        TlsError.
        """
        if data:
            _BIO_write(self._incoming, data, len(data))
        result = lib.SSL_do_handshake(self._ssl)
        waiting = result != 1 and _SSL_get_error(self._ssl, result) == _WANT_READ
        error = "" if result == 1 or waiting else self._describe_failure()
        self._keep_output()
        if error:
            raise TlsError(error)
        if waiting:
            return None  # OpenSSL keeps what it has read
        # OpenSSL reads no further than it needs: what it left begins with a whole record.
        rest = self._take(self._incoming)
        self._new_bios()
        return rest

    def _describe_failure(self) -> str:
        reason = last_error()
        if reason == _CERTIFICATE_REFUSED:
            why = lib.X509_verify_cert_error_string(lib.SSL_get_verify_result(self._ssl))
            return f"{reason}: {ffi.string(why).decode()}"
        return describe(reason) or "peer closed without close_notify"

    def decrypt(self, data: bytes | memoryview) -> bytes | memoryview:
        """Plaintext that `data` completes; afterwards look at `peer_closed` and `error`. Never raises.

        A view is valid until any session of the thread decrypts again.
        """
        size = len(data)
        if self.peer_closed or self.error:
            return b""
        if self._tail or size < HEADER or size > BULK or HEADER + (data[3] << 8 | data[4]) != size:
            return self._decrypt_records(data)
        _BIO_write(self._incoming, ffi.from_buffer(data), size)
        read = _SSL_read(self._ssl, self._plain_address, MAX_READ)
        if read <= 0:
            self._count_idle(size)
            self._stopped(read)
            return b""
        if self._idle_bytes:
            self._count_idle(size - RECORD)
        return bytes(self._plain[:read])

    def _decrypt_records(self, data: bytes | memoryview) -> bytes | memoryview:
        """Complete the record that was begun, then all whole ones from where they lie; keep the rest."""
        size = len(data)
        if size > MAX_READ:
            pieces = (data[start : start + MAX_READ] for start in range(0, size, MAX_READ))
            return b"".join([bytes(self.decrypt(piece)) for piece in pieces])
        tail, start = self._tail, 0
        total = self.records = 0
        if tail:
            if len(tail) < HEADER:
                start = min(HEADER - len(tail), size)
                tail += data[:start]
            if len(tail) >= HEADER:
                missing = HEADER + (tail[3] << 8 | tail[4]) - len(tail)
                tail += data[start : start + missing]
                start += missing
            self._tail = tail
            if len(tail) < HEADER or start > size:
                self._check_begun()
                return b""
            self._tail = b""
            total = self._decrypt_whole(ffi.from_buffer(tail), len(tail), 1, 0)
        end, count = _whole_records(data, start)
        self.records = count
        if count and not (self.error or self.peer_closed):
            total = self._decrypt_whole(ffi.from_buffer(data) + start, end - start, count, total)
        if end < size and not (self.error or self.peer_closed):
            self._tail = bytes(data[end:])
            self._check_begun()
        plain = self._plain[:total]
        return plain if total > BULK else bytes(plain)

    def _check_begun(self) -> None:
        """A record that claims to be larger than any may be is not waited for."""
        tail = self._tail
        if len(tail) >= HEADER and HEADER + (tail[3] << 8 | tail[4]) > MAX_FED:
            self._decrypt_whole(ffi.from_buffer(tail), len(tail), 1, 0)

    def _decrypt_whole(self, records: Any, size: int, count: int, total: int) -> int:
        """Add the plaintext of `count` whole records at this address to the `total` that there is, and return
        that. There is room: plaintext is shorter than its records."""
        ssl, address, capacity = self._ssl, self._plain_address, len(self._plain)
        bulk = size > BULK
        if bulk:  # without a copy
            incoming = lib.BIO_new_mem_buf(records, size)
            lib.BIO_set_mem_eof_return(incoming, -1)
            lib.SSL_set_bio(ssl, incoming, self._outgoing)
        else:
            _BIO_write(self._incoming, records, size)
        idle = size
        for _ in range(count):
            read = _SSL_read(ssl, address + total, capacity - total)
            if read <= 0:
                self._stopped(read)
                break
            total += read
            idle -= RECORD
        if idle > 0 or self._idle_bytes:
            self._count_idle(idle)
        if bulk:
            self._incoming = lib.BIO_new(_MEMORY)
            lib.SSL_set_bio(ssl, self._incoming, self._outgoing)
        return total

    def _stopped(self, result: int) -> None:
        """No more plaintext for now, or for ever; OpenSSL may have something to say to the peer."""
        code = _SSL_get_error(self._ssl, result)
        if code == _ZERO_RETURN:
            self.peer_closed = True
        elif code != _WANT_READ:
            self.error = self._describe_failure()
        self._keep_output()

    def _keep_output(self) -> None:
        self._output += self._take(self._outgoing)

    def _take(self, bio: Any) -> bytes:
        """All that a BIO holds."""
        taken = b""
        while (size := _BIO_read(bio, self._records_address, MAX_WRITTEN)) > 0:
            taken += self._records[:size]
        return taken

    def _count_idle(self, change: int) -> None:
        self._idle_bytes = max(0, self._idle_bytes + change)
        if self._idle_bytes > MAX_IDLE_BYTES and not self.error:
            self.error = f"peer sent more than {MAX_IDLE_BYTES} bytes of TLS records without application data"

    def encrypt(self, data: bytes) -> list[bytes]:
        """Records to write; `data` is not empty. Raises TlsError when the session is dead or closed by us."""
        if self.error:
            raise TlsError(self.error)
        if self._output:
            return [self.take_output(), *self.encrypt(data)]
        size = len(data)
        if size > BULK:
            return self._encrypt_bulk(data)
        if _SSL_write(self._ssl, data, size) != size:
            raise self._failure()
        length = _BIO_read(self._outgoing, self._records_address, MAX_WRITTEN)
        return [bytes(self._records[:length])]

    def _encrypt_bulk(self, data: bytes) -> list[bytes]:
        """Record by record: a BIO that has to grow copies and wipes what it held."""
        source = ffi.from_buffer(data)
        address, view, capacity = self._records_address, self._records, len(self._records)
        parts = []
        total = 0
        for start in range(0, len(data), RECORD):
            size = min(RECORD, len(data) - start)
            if _SSL_write(self._ssl, source + start, size) != size:
                raise self._failure()
            total += _BIO_read(self._outgoing, address + total, capacity - total)
            if capacity - total < MAX_FED:
                parts.append(bytes(view[:total]))
                total = 0
        parts.append(bytes(view[:total]))
        self._outgoing = lib.BIO_new(_MEMORY)
        lib.SSL_set_bio(self._ssl, self._incoming, self._outgoing)
        return parts

    def _failure(self) -> TlsError:
        error = self._describe_failure()
        self._keep_output()
        return TlsError(error)

    def close_notify(self) -> bytes:
        """Records that tell the peer that no more data comes; reading goes on. b"" the second time."""
        if not self.close_sent and not self.error:
            self.close_sent = True
            # 0: sent, the peer's own has not come yet.
            if lib.SSL_shutdown(self._ssl) < 0:
                self.error = self._describe_failure()
            self._keep_output()
        return self.take_output()

    def take_output(self) -> bytes:
        """Records to write during and after the handshake: flights and alerts."""
        output, self._output = self._output, b""
        return output

    @property
    def alpn(self) -> str:
        name, size = ffi.new("const unsigned char **"), ffi.new("unsigned int *")
        lib.SSL_get0_alpn_selected(self._ssl, name, size)
        return ffi.buffer(name[0], size[0])[:].decode("latin-1") if size[0] else ""

    @property
    def sni(self) -> str:
        """Server side: the name that the client asked for, or empty."""
        name = lib.SSL_get_servername(self._ssl, lib.TLSEXT_NAMETYPE_host_name)
        return ffi.string(name).decode("latin-1") if name != ffi.NULL else ""

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """None when the peer showed none. Raises ValueError when its names cannot be parsed."""
        certificate = lib.SSL_get_peer_certificate(self._ssl)
        if certificate == ffi.NULL:
            return None
        try:
            return read_peer(certificate)
        finally:
            lib.X509_free(certificate)

    def __repr__(self) -> str:
        state = self.error or ("peer closed" if self.peer_closed else "open")
        return (
            f"<TlsSession {ffi.string(lib.SSL_get_version(self._ssl)).decode()} alpn={self.alpn!r} {state}>"
        )


def _whole_records(data: bytes | memoryview, start: int) -> tuple[int, int]:
    """Where the last whole record that begins at `start` or later ends, and how many there are."""
    size = len(data)
    count = 0
    while start + HEADER <= size:
        end = start + HEADER + (data[start + 3] << 8 | data[start + 4])
        if end > size:
            break
        start = end
        count += 1
    return start, count
