"""Reads what a TLS client offers in its first message, without speaking TLS.

Sans-IO and incremental: each byte is looked at once, however the bytes are cut into reads and records. Called
by `server/inspection.py` with what a client sends before anything is decided about its connection; so nothing
here may raise, whatever comes, nor keep more than two records. It says what a client offers, which is no
proof of anything: the handshake itself decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.protocol.sniff import Protocol

MAX_CLIENT_HELLO = 16384
"""Bytes of the message; a longer one counts as no TLS. Browsers with post-quantum key shares send 2,000."""

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_MAX_RECORD = 16384
_SERVER_NAME = 0
_ALPN = 16


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`server_name` in lower case, "" without SNI; `alpn` in the client's order of preference."""

    server_name: str = ""
    alpn: tuple[str, ...] = ()


class ClientHelloParser:
    """`feed` it a connection's bytes until it answers TLS, and `hello` is there, or OTHER."""

    __slots__ = ("_header", "_left", "_message", "_verdict", "hello")

    def __init__(self) -> None:
        self.hello: ClientHello | None = None
        self._header = b""
        """What has come of a record's header."""
        self._left = 0
        """Bytes that the current record still has."""
        self._message = bytearray()
        self._verdict = Protocol.NEED_MORE

    def feed(self, data: bytes) -> Protocol:
        """NEED_MORE, TLS or OTHER. Once it is one of the last two it stays that."""
        pos = 0
        while self._verdict is Protocol.NEED_MORE and pos < len(data):
            if not self._left:
                taken = data[pos : pos + _RECORD_HEADER - len(self._header)]
                self._header += taken
                pos += len(taken)
                self._on_header()
            else:
                part = data[pos : pos + self._left]
                self._left -= len(part)
                pos += len(part)
                self._message += part
                self._on_message()
        return self._verdict

    def _on_header(self) -> None:
        """Handshake records of any 3.x version (RFC 8446 section 5.1); empty ones are not allowed."""
        header = self._header
        if header[0] != _HANDSHAKE_RECORD or header[1:2] not in (b"", b"\x03"):
            self._verdict = Protocol.OTHER
        elif len(header) == _RECORD_HEADER:
            self._left = header[3] << 8 | header[4]
            self._header = b""
            if not 0 < self._left <= _MAX_RECORD:
                self._verdict = Protocol.OTHER

    def _on_message(self) -> None:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            self._verdict = Protocol.OTHER
        if len(message) < _MESSAGE_HEADER:
            return
        end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER])
        if end > MAX_CLIENT_HELLO:
            self._verdict = Protocol.OTHER
        elif len(message) >= end and self._verdict is Protocol.NEED_MORE:
            self.hello = parse_client_hello(bytes(message[_MESSAGE_HEADER:end]))
            self._verdict = Protocol.OTHER if self.hello is None else Protocol.TLS
            self._message = bytearray()

    def __repr__(self) -> str:
        return f"<ClientHelloParser {self._verdict.name} {len(self._message)} bytes {self.hello}>"


def parse_client_hello(body: bytes) -> ClientHello | None:
    """What a ClientHello without its message header offers (RFC 8446 section 4.1.2); None when it is none."""
    reader = _Reader(body)
    reader.skip(2 + 32)  # legacy_version, random
    reader.vector(1)  # legacy_session_id
    reader.vector(2)  # cipher_suites
    reader.vector(1)  # legacy_compression_methods
    if reader.bad:
        return None
    if not reader.rest:
        return ClientHello()  # TLS 1.2 allows a hello without extensions
    extensions = _Reader(reader.vector(2))
    name = ""
    alpn: tuple[str, ...] = ()
    while extensions.rest and not extensions.bad:
        kind = extensions.number(2)
        value = _Reader(extensions.vector(2))
        if kind == _SERVER_NAME:
            name = _server_name(value)
        elif kind == _ALPN:
            alpn = _protocols(value)
        if value.bad:
            return None
    return None if reader.bad or reader.rest or extensions.bad else ClientHello(name, alpn)


def _server_name(value: _Reader) -> str:
    """RFC 6066 section 3: a list of names, of which only host_name (0) was ever defined."""
    names = _Reader(value.vector(2))
    found = ""
    while names.rest and not names.bad:
        kind = names.number(1)
        name = names.vector(2)
        if kind == 0 and not found:
            found = name.decode("ascii", "replace").lower()
    value.bad = value.bad or names.bad
    return found


def _protocols(value: _Reader) -> tuple[str, ...]:
    """RFC 7301 section 3.1."""
    names = _Reader(value.vector(2))
    found = []
    while names.rest and not names.bad:
        found.append(names.vector(1).decode("latin-1"))
    value.bad = value.bad or names.bad
    return tuple(found)


class _Reader:
    """Takes bytes from the front; past the end it yields nothing and turns `bad`."""

    __slots__ = ("bad", "rest")

    def __init__(self, data: bytes) -> None:
        self.rest = data
        self.bad = False

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        if len(taken) < size:
            self.bad = True
        return taken

    def skip(self, size: int) -> None:
        self.take(size)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A variable-length vector whose length takes `size` bytes (RFC 8446 section 3.4)."""
        return self.take(self.number(size))

    def __repr__(self) -> str:
        return f"<_Reader {len(self.rest)} bytes left{' bad' if self.bad else ''}>"
