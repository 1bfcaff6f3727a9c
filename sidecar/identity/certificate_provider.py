"""This workload's identity: obtains its certificate, renews it in time, and says what it trusts.

Made by the composition root for each certificate provider of the bootstrap; `tls_contexts.py` makes
contexts from it, the admin server shows `status()`. The private key is made here, for each certificate
anew, and never leaves the process.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.config.resources import CaProviderConfig
from sidecar.runtime.tasks import spawn

_log = logging.getLogger(__name__)

RENEW_AT = 2 / 3
"""Share of the certificate's life after which it is renewed."""
JITTER = 0.05
"""Sidecars that started together shall not renew together."""
BACK_OFF_MIN = 1.0
BACK_OFF_MAX = 60.0

Sign = Callable[[bytes, float], Awaitable[list[str]]]
"""(CSR in PEM, wanted lifetime in seconds) → chain in PEM, leaf first, root last. Raises SigningError."""


class SigningError(Exception):
    """No certificate was obtained; the text says from whom and why."""


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that is needed here."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> TimerHandle: ...


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A certificate with its key, all PEM. Written by no `repr`, because of the key."""

    spiffe_id: str
    serial: str
    not_after: float
    """Seconds since the epoch."""
    chain_pem: str
    """Leaf and intermediates."""
    private_key_pem: bytes
    roots_pem: str


class CertificateProvider:
    """Keeps one identity current. After `start`, the first certificate is awaited with `ready()`."""

    def __init__(
        self,
        config: CaProviderConfig,
        sign: Sign,
        clock: Clock,
        random: Random,
        now: Callable[[], float] = time.time,
        ca_file: str = "",
    ) -> None:
        """`now` is wall time in seconds, for what certificates say about theirs. `ca_file` names further
        roots to trust, read at each renewal."""
        self._config = config
        self._sign = sign
        self._clock = clock
        self._random = random
        self._now = now
        self._ca_file = ca_file
        self._identity: Identity | None = None
        self._trust_bundle = ""
        self._timer: TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._failures = 0
        self.last_error = ""
        self.version = 0
        """Rises whenever certificate or trust bundle change; 0: there is none yet."""

    def start(self) -> None:
        """Begin to obtain and renew."""
        if self._task is None and self._timer is None:
            self._begin()

    async def stop(self) -> None:
        """No more renewals; what there is stays usable."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def ready(self) -> None:
        """Returns once there is a certificate."""
        await self._ready.wait()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change. Returns the function that unsubscribes."""
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    @property
    def spiffe_id(self) -> str:
        return self._identity.spiffe_id if self._identity else ""

    @property
    def not_after(self) -> float:
        """Seconds since the epoch; 0.0 without a certificate."""
        return self._identity.not_after if self._identity else 0.0

    @property
    def certificate_chain_pem(self) -> str:
        """Leaf and intermediates, "" without a certificate."""
        return self._identity.chain_pem if self._identity else ""

    @property
    def private_key_pem(self) -> bytes:
        return self._identity.private_key_pem if self._identity else b""

    @property
    def trust_bundle_pem(self) -> str:
        return self._trust_bundle

    def status(self) -> dict[str, object]:
        """For the admin server's /certs. No secrets."""
        identity = self._identity
        expiry = (
            datetime.datetime.fromtimestamp(self.not_after, datetime.UTC).isoformat() if identity else None
        )
        return {
            "provider": self._config.instance,
            "spiffe_id": self.spiffe_id or self._config.spiffe_id,
            "serial": identity.serial if identity else None,
            "not_after": expiry,
            "seconds_left": round(identity.not_after - self._now(), 3) if identity else None,
            "version": self.version,
            "last_error": self.last_error or None,
        }

    # --- renewal

    def _begin(self) -> None:
        self._timer = None
        self._task = spawn(self._renew(), f"certificate provider {self._config.instance}")

    async def _renew(self) -> None:
        try:
            identity = await self._obtain()
        except SigningError as error:
            self._failed(str(error))
        except Exception as error:
            self._failed(f"internal error: {error!r}")
            raise
        else:
            self._succeeded(identity)

    async def _obtain(self) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        if self._config.spiffe_id:  # a courtesy: the authority takes the identity from the token alone
            name = x509.UniformResourceIdentifier(self._config.spiffe_id)
            csr = csr.add_extension(x509.SubjectAlternativeName([name]), critical=True)
        request = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        chain = await self._sign(request, self._config.ttl)
        return _check(chain, key, self._config.spiffe_id, self._now())

    def _succeeded(self, identity: Identity) -> None:
        self._task = None
        extra = self._read_ca_file()
        self._identity = identity
        self._trust_bundle = identity.roots_pem + extra
        self._failures = 0
        self.version += 1
        life = identity.not_after - self._now()
        delay = life * RENEW_AT * self._random.uniform(1 - JITTER, 1 + JITTER)
        self._timer = self._clock.call_later(delay, self._begin)
        _log.info("certificate %s for %s, renewal in %.0f s", identity.serial, identity.spiffe_id, delay)
        self._ready.set()
        for callback in list(self._subscribers.values()):
            callback()

    def _failed(self, reason: str) -> None:
        self._task = None
        self.last_error = reason
        delay = min(BACK_OFF_MAX, BACK_OFF_MIN * 2.0 ** min(self._failures, 10))
        delay *= self._random.uniform(1 - JITTER, 1 + JITTER)
        self._failures += 1
        self._timer = self._clock.call_later(delay, self._begin)
        left = (
            f"the present one is good for {self.not_after - self._now():.0f} s"
            if self._identity
            else "none yet"
        )
        _log.warning(
            "no certificate for provider %s: %s; %s; next attempt in %.1f s",
            *(self._config.instance, reason, left, delay),
        )

    def _read_ca_file(self) -> str:
        """Further roots. What cannot be read is no reason to throw away a good certificate."""
        self.last_error = ""
        if not self._ca_file:
            return ""
        try:
            with open(self._ca_file, encoding="ascii") as file:
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            self.last_error = f"cannot read trusted roots from {self._ca_file}: {error}"
            _log.warning("%s", self.last_error)
            return ""

    def __repr__(self) -> str:
        return (
            f"<CertificateProvider {self._config.instance} {self.spiffe_id or 'no certificate'} "
            f"version={self.version} failures={self._failures}>"
        )


def _check(chain: list[str], key: ec.EllipticCurvePrivateKey, expected: str, now: float) -> Identity:
    """The identity that a signed chain gives `key`. Raises SigningError when it is not what was asked for."""
    try:
        certificates = [
            certificate
            for pem in chain
            for certificate in x509.load_pem_x509_certificates(pem.encode("ascii"))
        ]
        leaf, issuers = certificates[0], certificates[1:]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, IndexError, x509.ExtensionNotFound) as error:
        raise SigningError(f"the authority's answer is not a certificate chain: {error}") from error
    if leaf.public_key() != key.public_key():
        raise SigningError("the authority signed another key than the one that was sent")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    spiffe_id = uris[0] if uris else ""
    if expected and uris != [expected]:
        raise SigningError(
            f"the authority knows this workload as {', '.join(uris) or 'nobody'}, not as {expected}; "
            "its token belongs to another service account"
        )
    not_after = leaf.not_valid_after_utc.timestamp()
    if not_after <= now:
        raise SigningError(
            f"the certificate expired at {leaf.not_valid_after_utc.isoformat()}; compare the clocks"
        )
    roots = [certificate for certificate in issuers if certificate.subject == certificate.issuer]
    intermediates = [certificate for certificate in issuers if certificate not in roots]
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    serial = f"{leaf.serial_number:x}"
    return Identity(spiffe_id, serial, not_after, _pem([leaf, *intermediates]), key_pem, _pem(roots))


def _pem(certificates: list[x509.Certificate]) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode("ascii") for c in certificates)
