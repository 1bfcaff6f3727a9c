"""The workload's certificate in virtual time: obtaining, renewing, failing, and what connections see."""

from __future__ import annotations

import asyncio
import datetime
import itertools
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from cryptography import x509

from sidecar.config.resources import CaProviderConfig, SocketAddress, TlsConfig
from sidecar.identity.certificate_provider import CertificateProvider, SigningError
from sidecar.identity.tls_contexts import TlsConfigError, TlsContexts
from sidecar.net.connect import connect
from tests.support.certs import make_ca
from tests.support.connections import Owner, RecordingCodec, Server, run, until
from tests.support.virtual_clock import VirtualClock

USERS = "spiffe://cluster.local/ns/shop/sa/users"
ORDERS = "spiffe://cluster.local/ns/shop/sa/orders"


class Setup:
    """A provider in virtual time, whose wall clock starts now, with an authority that can be told to fail."""

    def __init__(
        self, expected: str = USERS, issued: str = USERS, life: float = 3600.0, ca_file: str = ""
    ) -> None:
        self.ca = make_ca()
        self.clock = VirtualClock(0.0)
        self.issued = USERS
        self.life = life
        self.error = ""
        self.requests: list[tuple[bytes, float]] = []
        self.start = datetime.datetime.now(datetime.UTC).timestamp()
        config = CaProviderConfig("mesh", "control-plane", "", USERS, 86400.0)
        self.provider = CertificateProvider(config, self._sign, self.clock, Random(1), self._now, ca_file)

    def _now(self) -> float:
        return self.start + self.clock.time()

    async def _sign(self, csr: bytes, ttl: float) -> list[str]:
        self.requests.append((csr, ttl))
        if self.error:
            raise SigningError(self.error)
        # Real time stands still, so a certificate that is asked for later must live longer by that.
        return self.ca.sign_csr(csr, self.issued, self.life + self.clock.time())

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)


def test_first_certificate_has_identity_key_and_trust() -> None:
    async def main() -> None:
        setup = Setup()
        provider = setup.provider
        assert (provider.version, provider.certificate_chain_pem, provider.spiffe_id) == (0, "", "")
        provider.start()
        await asyncio.wait_for(provider.ready(), 5)
        assert (provider.version, provider.spiffe_id) == (1, USERS)
        assert provider.trust_bundle_pem == setup.ca.ca_pem.decode()
        assert provider.certificate_chain_pem.count("BEGIN CERTIFICATE") == 1
        assert provider.not_after == pytest.approx(setup.start + 3600, abs=2)
        csr, ttl = setup.requests[0]
        assert ttl == 86400.0
        names = x509.load_pem_x509_csr(csr).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [USERS]
        assert "PRIVATE" not in f"{provider!r} {provider.status()} {provider.__dict__}"
        await provider.stop()

    run(main)


def test_renewal_comes_at_two_thirds_of_life_with_a_new_key() -> None:
    async def main() -> None:
        setup = Setup(life=3600)
        changes: list[int] = []
        provider = setup.provider
        provider.subscribe(lambda: changes.append(provider.version))
        provider.start()
        await provider.ready()
        key = provider.private_key_pem
        await setup.advance(3600 * 2 / 3 * 0.95 - 5)
        assert provider.version == 1
        await setup.advance(3600 * 2 / 3 * 0.10 + 10)
        assert changes == [1, 2]
        assert provider.private_key_pem != key
        await provider.stop()
        await setup.advance(10_000)
        assert provider.version == 2

    run(main)


def test_failures_back_off_to_a_minute_and_keep_the_old_certificate() -> None:
    async def main() -> None:
        setup = Setup(life=3600)
        setup.provider.start()
        await setup.provider.ready()
        setup.error = "control plane is away"
        times: list[float] = []
        while len(times) < 9:
            count = len(setup.requests)
            await setup.advance(0.25)
            times += [setup.clock.time()] * (len(setup.requests) - count)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps == [pytest.approx(gap, rel=0.06, abs=0.3) for gap in (1, 2, 4, 8, 16, 32, 60, 60)]
        assert setup.provider.version == 1
        assert setup.provider.certificate_chain_pem
        assert setup.provider.status()["last_error"] == "control plane is away"
        setup.error = ""
        await setup.advance(66)
        assert setup.provider.version == 2
        assert setup.provider.status()["last_error"] is None
        await setup.provider.stop()

    run(main)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda setup: setattr(setup, "issued", ORDERS),
            f"the authority knows this workload as {ORDERS}, not as {USERS}; "
            "its token belongs to another service account",
        ),
        (lambda setup: setattr(setup, "life", -30.0), "the certificate expired at "),
    ],
)
def test_certificate_that_is_not_what_was_asked_for_is_refused(
    change: Callable[[Setup], None], reason: str
) -> None:
    async def main() -> None:
        setup = Setup()
        change(setup)
        setup.provider.start()
        await setup.advance(0)
        assert setup.provider.version == 0
        assert setup.provider.last_error.startswith(reason)
        await setup.provider.stop()

    run(main)


def test_answers_that_are_no_chain_for_this_key_are_refused() -> None:
    async def main() -> None:
        setup = Setup()
        other_certificate, _ = setup.ca.issue(USERS)
        answers = [["nonsense"], [], [other_certificate.decode(), setup.ca.ca_pem.decode()]]

        async def sign(csr: bytes, ttl: float) -> list[str]:
            return answers.pop(0)

        config = CaProviderConfig("mesh", "control-plane", "", USERS)
        provider = CertificateProvider(config, sign, setup.clock, Random(1), setup._now)
        errors = []
        provider.start()
        for _ in range(3):
            await setup.advance(2.5)
            errors.append(provider.last_error)
        assert errors[0].startswith("the authority's answer is not a certificate chain")
        assert errors[1].startswith("the authority's answer is not a certificate chain")
        assert errors[2] == "the authority signed another key than the one that was sent"
        assert provider.version == 0
        await provider.stop()

    run(main)


def test_further_roots_come_from_a_file(tmp_path: Path) -> None:
    async def main() -> None:
        extra = make_ca("corporate root").ca_pem
        (tmp_path / "extra.pem").write_bytes(extra)
        setup = Setup(ca_file=str(tmp_path / "extra.pem"))
        setup.provider.start()
        await setup.provider.ready()
        assert setup.provider.trust_bundle_pem == (setup.ca.ca_pem + extra).decode()
        await setup.provider.stop()

    run(main)


def test_contexts_follow_the_provider_and_say_when_there_is_nothing_yet() -> None:
    async def main() -> None:
        setup = Setup()
        contexts = TlsContexts({"mesh": setup.provider}, setup.clock.time)
        config = TlsConfig(provider="mesh", trusted_ca_provider="mesh", require_client_certificate=True)
        with pytest.raises(TlsConfigError, match="certificate provider 'mesh'"):
            contexts.server(config)
        setup.provider.start()
        await setup.provider.ready()
        first = contexts.server(config)
        assert contexts.server(config) is first
        await setup.advance(2600)
        assert setup.provider.version == 2
        assert contexts.server(config) is not first
        await setup.provider.stop()

    run(main)


def test_live_connections_survive_a_renewal_and_new_ones_show_the_new_certificate() -> None:
    async def main() -> None:
        setup = Setup()
        setup.provider.start()
        await setup.provider.ready()
        contexts = TlsContexts({"mesh": setup.provider}, setup.clock.time)
        config = TlsConfig(provider="mesh", trusted_ca_provider="mesh", require_client_certificate=True)
        loop = asyncio.get_running_loop()
        async with Server(Owner(lambda: RecordingCodec(echo=True)), contexts.server(config)) as server:
            address = SocketAddress("127.0.0.1", server.port)
            old, new = RecordingCodec(), RecordingCodec()
            first = await connect(loop, address, Owner(lambda: old), contexts.client(config), 5.0)
            await setup.advance(2600)
            server.tls = contexts.server(config)
            second = await connect(loop, address, Owner(lambda: new), contexts.client(config), 5.0)
            assert first.peer.cert_sha256 != second.peer.cert_sha256
            assert first.peer.uri_sans == second.peer.uri_sans == (USERS,)
            old.write(b"still here")
            await until(lambda: old.received == b"still here")
            first.abort()
            second.abort()
        await setup.provider.stop()

    run(main)
