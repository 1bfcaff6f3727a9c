"""What the connections of one filter chain share, and what they must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from sidecar.config.resources import ClientCert, HttpConnectionManagerConfig
from sidecar.net.connection import Connection
from sidecar.net.peer import PeerInfo
from sidecar.protocol.h2 import H2Options
from sidecar.protocol.sniff import Protocol
from sidecar.server.chain import HttpChain
from sidecar.telemetry.metrics import ListenerStats
from tests.support.exchange_rig import Rig

SPIFFE = "spiffe://cluster.local/ns/shop/sa/"


class FakeConnection:
    def __init__(self, account: str, alpn: str, certificate: str) -> None:
        self.peer = PeerInfo(("10.0.0.1", 1), ("10.0.0.2", 2), True, alpn, (SPIFFE + account,), certificate)
        self.local_identity = SPIFFE + "server"

    def set_codec(self, codec: object) -> None:
        """It is not asked for anything."""


def options_of(*callers: tuple[str, str, str]) -> list[H2Options]:
    """Of connections to one chain, by the caller's account, ALPN and certificate."""
    made: list[H2Options] = []

    def make_h2(client: bool, handler: Any, options: H2Options) -> Any:
        made.append(options)

    chain, _ = chain_of(make_h2)
    for caller in callers:
        chain.on_connection(cast(Connection, FakeConnection(*caller)))
    return made


def chain_of(make_h2: Callable[..., Any]) -> tuple[HttpChain, Rig]:
    rig = Rig()
    rig.context.config = HttpConnectionManagerConfig("rig", client_cert=ClientCert.SANITIZE_SET)
    return HttpChain(rig.context, ListenerStats(), make_h2, None), rig


def test_connections_of_one_caller_share_what_is_remembered_of_their_requests() -> None:
    first, second = options_of(("a", "h2", "1"), ("a", "h2", "1"))
    assert first.common_blocks is not None
    assert first is second


def test_nothing_is_shared_between_certificates_and_kinds_of_peers() -> None:
    made = options_of(("a", "h2", "1"), ("a", "h2", "2"), ("a", "pilotfish-h2", "1"))
    assert len({id(options.common_blocks) for options in made}) == 3
    assert [options.trusted_peer for options in made] == [False, False, True]


def test_connections_that_have_a_destination_of_their_own_share_nothing() -> None:
    made: list[H2Options] = []
    chain, rig = chain_of(lambda client, handler, options: made.append(options))
    connection = cast(Connection, FakeConnection("a", "h2", "1"))
    chain.serve(connection, Protocol.HTTP2)
    chain.serve(connection, Protocol.HTTP2, replace(rig.context))
    chain.serve(connection, Protocol.HTTP2, rig.context)  # what came by CONNECT goes where all go
    assert [options.common_blocks is None for options in made] == [False, True, False]


def test_callers_without_number_do_not_pile_up() -> None:
    made = options_of(*((f"a{number}", "h2", f"{number}") for number in range(200)), ("a0", "h2", "0"))
    assert made[-1] is not made[0]
