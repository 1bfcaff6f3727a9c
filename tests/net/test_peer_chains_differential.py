"""Chains of peers as a plain OpenSSL context with the same roots judges them: nobody is taken whom it
refuses.

Chains are generated: roots of one name or several, renewed and cross-signed; intermediates that may not
issue, are for other purposes or names, too deep, out of their time or forged; shown in any order, twice, with
the root, and beside certificates that have nothing to do with them. Each verdict is that of new contexts:
which of several issuers of one name a store gives first depends on what it was asked before.
"""

from __future__ import annotations

import datetime
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.net.certificates import native_of
from sidecar.net.openssl import ffi, last_error, lib
from sidecar.net.tls import TlsError, TlsParameters, TlsSession
from sidecar.net.tls_context import TlsContext

CHAINS = 300
NOW = datetime.datetime.now(datetime.UTC)
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(12)]
LEAF_KEY, FORGER = KEYS.pop(), KEYS.pop()
LEAF_KEY_PEM = LEAF_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOST, URI = x509.DNSName("leaf.test"), x509.UniformResourceIdentifier("spiffe://mesh.test/leaf")
ELSEWHERE = x509.UniformResourceIdentifier("elsewhere.test")
EXPIRED, TO_COME = (-48.0, -1.0), (1.0, 48.0)
EC_KEY = bytes.fromhex("06072a8648ce3d0201")
"""id-ecPublicKey in DER."""
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Terms:
    """What a certificate says beside who it is of. `ca` None: nothing of that. `valid`: hours from now."""

    ca: bool | None = True
    path_length: int | None = None
    valid: tuple[float, float] = (-24.0, 24.0)
    purposes: tuple[x509.ObjectIdentifier, ...] = ()
    usages: tuple[str, ...] = ()
    constraints: x509.NameConstraints | None = None
    names: tuple[x509.GeneralName, ...] = ()
    unknown: bool = False
    """It has a critical extension that nobody knows."""
    forged: bool = False
    """Its issuer has not signed it."""

    def extensions(self) -> list[tuple[x509.ExtensionType, bool]]:
        found: list[tuple[x509.ExtensionType, bool]] = []
        if self.ca is not None:
            found.append((x509.BasicConstraints(self.ca, self.path_length if self.ca else None), True))
        if self.purposes:
            found.append((x509.ExtendedKeyUsage(self.purposes), False))
        if self.usages:
            found.append((x509.KeyUsage(**{usage: usage in self.usages for usage in USAGES}), True))
        if self.constraints is not None:
            found.append((self.constraints, True))
        if self.names:
            found.append((x509.SubjectAlternativeName(self.names), False))
        if self.unknown:
            found.append((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True))
        return found


ISSUER = Terms()
LEAF = Terms(ca=False, purposes=(SERVER, CLIENT), names=(HOST, URI))
BAD_ISSUERS = (
    *(replace(ISSUER, ca=False), replace(ISSUER, ca=None), replace(ISSUER, path_length=0)),
    *(replace(ISSUER, usages=("digital_signature",)), replace(ISSUER, unknown=True)),
    *(replace(ISSUER, valid=EXPIRED), replace(ISSUER, valid=TO_COME), replace(ISSUER, forged=True)),
    *(replace(ISSUER, purposes=(purpose,)) for purpose in (SERVER, CLIENT, ExtendedKeyUsageOID.CODE_SIGNING)),
    replace(ISSUER, constraints=x509.NameConstraints([ELSEWHERE], None)),
    replace(ISSUER, constraints=x509.NameConstraints(None, [HOST])),
    replace(ISSUER, constraints=x509.NameConstraints([x509.DNSName("test")], [x509.DNSName("other.test")])),
)
BAD_LEAVES = (
    *(replace(LEAF, purposes=(purpose,)) for purpose in (SERVER, CLIENT, ExtendedKeyUsageOID.CODE_SIGNING)),
    *(replace(LEAF, valid=EXPIRED), replace(LEAF, valid=TO_COME), replace(LEAF, forged=True)),
    *(replace(LEAF, usages=("key_cert_sign",)), replace(LEAF, unknown=True)),
    replace(LEAF, names=(x509.DNSName("elsewhere.test"), URI)),
)


@dataclass(frozen=True)
class Party:
    name: str
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey

    @property
    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    def certified(self, terms: Terms, issuer: Party | None = None) -> x509.Certificate:
        """By itself where there is no issuer."""
        issuer = issuer or self
        start, end = (NOW + datetime.timedelta(hours=hours) for hours in terms.valid)
        key = self.key.public_key()
        builder = (
            x509.CertificateBuilder(
                issuer.subject, self.subject, key, x509.random_serial_number(), start, end
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
        )
        for extension, critical in terms.extensions():
            builder = builder.add_extension(extension, critical)
        return builder.sign(FORGER if terms.forged else issuer.key, hashes.SHA256())


PEER = Party("leaf", LEAF_KEY)


class PlainContext(TlsContext):
    """Leaves it all to OpenSSL."""

    def trust(self, pem: bytes) -> None:
        store = lib.SSL_CTX_get_cert_store(self.handle)
        for certificate in x509.load_pem_x509_certificates(pem):
            assert lib.X509_STORE_add_cert(store, native_of(certificate)) == 1

    def verify_peer(self, required: bool) -> None:
        flags = lib.SSL_VERIFY_PEER | (lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
        lib.SSL_CTX_set_verify(self.handle, flags, ffi.NULL)


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def shower(of_server: bool, shown: Sequence[x509.Certificate]) -> TlsContext:
    """The peer, which looks at nothing itself. `shown`: leaf first."""
    context = TlsContext(of_server)
    lib.SSL_CTX_set_cipher_list(context.handle, b"DEFAULT:@SECLEVEL=0")
    context.use_identity(pem_of(shown), LEAF_KEY_PEM)
    return context


def judge(kind: type[TlsContext], of_server: bool, trusted: Sequence[x509.Certificate]) -> TlsContext:
    """Who verifies servers, or clients."""
    context = kind(not of_server)
    context.trust(pem_of(trusted))
    context.verify_peer(required=True)
    context.check_hostname = of_server
    if not of_server:
        context.use_identity(pem_of([PEER.certified(LEAF)]), LEAF_KEY_PEM)
    return context


def verdict(judge: TlsContext, peer: TlsContext) -> str:
    """ "" or why not."""
    client, server = (peer, judge) if judge.server_side else (judge, peer)
    one = TlsSession(TlsParameters(client, "leaf.test"), False)
    other = TlsSession(TlsParameters(server), True)
    try:
        one.handshake(b"")
        other.handshake(one.take_output())
        assert one.handshake(other.take_output()) is not None
        assert other.handshake(one.take_output()) is not None
    except TlsError as error:
        return str(error).removeprefix("certificate verify failed: ")
    return ""


@dataclass
class Scene:
    """A leaf, what leads from it to a root, and what else there is."""

    leaf: x509.Certificate
    needed: list[x509.Certificate]
    others: list[x509.Certificate]
    roots: list[x509.Certificate]

    @classmethod
    def made(cls, rng: random.Random) -> Scene:
        bad = rng.choice((0.0, 0.1, 0.3))
        keys = iter(rng.sample(KEYS, len(KEYS)))
        parties = [Party(rng.choice(("root", f"root {i}")), next(keys)) for i in range(rng.randint(1, 3))]

        def issuer_terms() -> Terms:
            return rng.choice(BAD_ISSUERS) if rng.random() < bad else ISSUER

        roots = [party.certified(issuer_terms()) for party in parties]
        others = [Party("unrelated", next(keys)).certified(ISSUER)]
        for party in parties:
            if rng.random() < 0.2:
                others.append(party.certified(issuer_terms()))
            if rng.random() < 0.3:
                others.append(party.certified(issuer_terms(), rng.choice(parties)))
        last, needed = rng.choice(parties), []
        for depth in range(rng.randint(0, 3)):
            party = Party(f"intermediate {depth}", next(keys))
            needed.append(party.certified(issuer_terms(), last))
            if rng.random() < 0.15:
                others.append(party.certified(issuer_terms(), rng.choice(parties)))
            last = party
        leaf_terms = rng.choice(BAD_LEAVES) if rng.random() < bad else LEAF
        leaf = PEER.certified(leaf_terms, None if rng.random() < 0.05 else last)
        return cls(leaf, needed[::-1], others, roots)

    def shown(self, rng: random.Random) -> tuple[list[x509.Certificate], bool]:
        """Leaf first; and whether all of it is of use or has nothing to do with the rest."""
        shown, useful = list(self.needed), rng.random() < 0.5
        if not useful:
            everything = [*self.needed, *self.others, *self.roots]
            shown = [each for each in everything if rng.random() < 0.8]
        elif rng.random() < 0.5:
            shown += [*self.needed, self.others[0]]
        if rng.random() < 0.7:
            rng.shuffle(shown)
        return [self.leaf, *shown], useful


def test_verdicts_are_those_of_openssl_and_never_milder() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(CHAINS):
        rng = random.Random(seed)
        scene = Scene.made(rng)
        trusted = [root for root in scene.roots if rng.random() < 0.7] or scene.roots
        shown, useful = scene.shown(rng)
        for of_server in (True, False):
            peer = shower(of_server, shown)
            wanted = verdict(judge(PlainContext, of_server, trusted), peer)
            ours = judge(TlsContext, of_server, trusted)
            first, second = verdict(ours, peer), verdict(ours, peer)
            assert bool(first) == bool(second)
            assert first or not wanted, f"{seed}: OpenSSL says {wanted!r}"
            assert wanted or not (first and useful), f"{seed}: OpenSSL has nothing against it, we {first!r}"
            verdicts[wanted] += 1
    assert verdicts[""] > CHAINS / 3  # of twice as many
    for part in (
        "local issuer",
        "expired",
        "not yet valid",
        "purpose",
        "path length",
        "invalid CA",
        "subtree",
    ):
        assert any(part in each for each in verdicts), (part, verdicts)


@pytest.mark.parametrize("of_server", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_no_bad_certificate_is_helped_by_a_good_one_of_the_same_name_and_key(
    of_server: bool, depth: int
) -> None:
    root, stranger, party = Party("root", KEYS[0]), Party("root", KEYS[1]), Party("intermediate", KEYS[2])
    issuer, chain = (party, [party.certified(ISSUER, root)]) if depth else (root, [])
    roots = [root.certified(ISSUER)]
    ours = judge(TlsContext, of_server, roots)
    good = shower(of_server, [PEER.certified(LEAF, issuer), *chain])
    assert verdict(ours, good) == ""
    bad = [[PEER.certified(terms, issuer), *chain] for terms in BAD_LEAVES]
    bad += [
        [PEER.certified(LEAF, stranger)],
        [PEER.certified(LEAF)],
        [PEER.certified(LEAF, stranger), *roots],
    ]
    for terms in BAD_ISSUERS:
        bad.append([PEER.certified(LEAF, party), party.certified(terms, root)])
    for shown in bad:
        peer = shower(of_server, shown)
        wanted = verdict(judge(PlainContext, of_server, roots), peer)
        for _ in range(2):
            assert bool(verdict(ours, peer)) == bool(wanted), wanted
        assert verdict(ours, good) == ""


OLD, NEW = Party("old root", KEYS[3]), Party("new root", KEYS[4])
SUPERFLUOUS = {
    "the root as it was before it was renewed": [NEW.certified(replace(ISSUER, valid=EXPIRED))],
    "a root that has signed ours, and has expired": [
        NEW.certified(ISSUER, OLD),
        OLD.certified(replace(ISSUER, valid=EXPIRED)),
    ],
    "an expired certificate of ours by another root": [
        NEW.certified(replace(ISSUER, valid=EXPIRED), OLD),
        OLD.certified(ISSUER),
    ],
    "a root that has signed ours, and is for other purposes": [
        NEW.certified(ISSUER, OLD),
        OLD.certified(replace(ISSUER, purposes=(ExtendedKeyUsageOID.CODE_SIGNING,))),
    ],
}


@pytest.mark.parametrize("of_server", [True, False])
@pytest.mark.parametrize("beside", SUPERFLUOUS)
def test_what_is_shown_beside_a_good_chain_spoils_nothing(beside: str, of_server: bool) -> None:
    """As peers do that were set up before a root was renewed, or that are to be believed by old clients."""
    roots = [NEW.certified(ISSUER)]
    peer = shower(of_server, [PEER.certified(LEAF, NEW), *SUPERFLUOUS[beside]])
    assert verdict(judge(PlainContext, of_server, roots), peer) == ""
    assert verdict(judge(TlsContext, of_server, roots), peer) == ""


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: rsa.generate_private_key(65537, 1024),
        lambda: ec.generate_private_key(ec.SECP192R1()),
        lambda: ec.generate_private_key(ec.SECP224R1()),
        lambda: dsa.generate_private_key(1024),
        lambda: rsa.generate_private_key(65537, 2040),
    ],
    ids=["RSA 1024", "P-192", "P-224", "DSA 1024", "RSA 2040"],
)
@pytest.mark.parametrize("of_server", [True, False])
def test_a_root_is_strong_enough_when_openssl_says_so(
    make_key: Callable[[], ec.EllipticCurvePrivateKey], of_server: bool
) -> None:
    root = Party("root", make_key())
    roots, peer = [root.certified(ISSUER)], shower(of_server, [PEER.certified(LEAF, root)])
    wanted = verdict(judge(PlainContext, of_server, roots), peer)
    assert verdict(judge(TlsContext, of_server, roots), peer) == wanted


def test_a_key_that_nobody_can_read_leaves_no_error_behind() -> None:
    """In the root that is shown beside the chain, in place of the root that is trusted."""
    der = NEW.certified(ISSUER).public_bytes(serialization.Encoding.DER)
    unreadable = x509.load_der_x509_certificate(der.replace(EC_KEY, EC_KEY[:-1] + b"\x09"))
    client = shower(False, [PEER.certified(LEAF, NEW), unreadable])
    server = judge(TlsContext, False, [NEW.certified(ISSUER)])
    one, other = TlsSession(TlsParameters(client), False), TlsSession(TlsParameters(server), True)
    one.handshake(b"")
    other.handshake(one.take_output())
    one.handshake(other.take_output())
    last_error()
    assert other.handshake(one.take_output()) is not None
    assert last_error() == ""
