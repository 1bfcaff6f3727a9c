"""Files of the certificate authority: written whole or not at all, and private where they hold keys.

Used by the authority and by the join tokens. Refuses to read a key that others on the machine can read:
whoever holds it is the mesh.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

KEY_MODE = 0o600
DIRECTORY_MODE = 0o700
PUBLIC_MODE = 0o644


class CaError(Exception):
    """The authority cannot do its work; the text says what is wrong with which file, and what to do."""


def private_directory(path: Path) -> Path:
    """Makes the directory if it is missing. Raises CaError if others than its owner may enter it."""
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise CaError(f"cannot make the CA directory {path}: {error.strerror}") from error
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise CaError(f"CA directory {path} has mode {mode:04o}, others may enter it: run chmod 700 {path}")
    return path


def read_key(path: Path, forbidden: int = 0o077) -> ec.EllipticCurvePrivateKey | None:
    """The ECDSA key in a PEM file; None if there is no such file. `forbidden`: mode bits that it must
    not have. Raises CaError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & forbidden:
            raise CaError(f"key file {path} has mode {mode:04o}, others may read it: run chmod 600 {path}")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaError(f"cannot read key file {path}: {error.strerror}") from error
    return parse_key(data, f"key file {path}")


def parse_key(data: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """The ECDSA key in PEM that came from `where`. Raises CaError."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise CaError(f"{where} is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaError(f"{where} holds a {type(key).__name__}; an ECDSA key (P-256) is needed")
    return key


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in `path`, made first if there is none. Of several processes that start at once with the
    same directory one makes it and all use it."""
    key = read_key(path)
    if key is not None:
        return key
    create(path, key_pem(make_key()), KEY_MODE)
    key = read_key(path)
    if key is None:
        raise CaError(f"key file {path} was removed while it was being made")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def create(path: Path, data: bytes, mode: int) -> bool:
    """Writes a file that does not exist yet. False, and nothing written, if it does."""
    temporary = _write_temporary(path, data, mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def replace(path: Path, data: bytes, mode: int) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    _write_temporary(path, data, mode).replace(path)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    try:
        # mkstemp makes files of mode 0600, so a key is never readable by others, not even at first.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise CaError(f"cannot write {path}: {error.strerror}") from error
    return Path(name)
