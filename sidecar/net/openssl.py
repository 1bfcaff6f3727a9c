"""The OpenSSL that the `cryptography` package carries.

Python's own `ssl` is not used: it has whatever OpenSSL the distribution built it with (with 3.0 of Debian
12 a handshake costs 1.6 times as much), and its objects copy every record twice. The binding is the one that
pyOpenSSL stands on; `cryptography` is pinned, and nothing outside of this package may use it.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding

lib: Any = Binding.lib
ffi: Any = Binding.ffi


class OpenSslError(Exception):
    """What OpenSSL says was wrong, in its words."""


def last_error() -> str:
    """The first of the thread's queued errors, "" when there is none; the queue is empty afterwards."""
    text = ""
    while code := lib.ERR_get_error():
        if not text:
            reason = lib.ERR_reason_error_string(code)
            text = ffi.string(reason).decode() if reason else f"OpenSSL error {code:#x}"
    return text
