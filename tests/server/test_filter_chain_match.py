"""Which filter chain takes a connection, by Envoy's rules."""

from __future__ import annotations

import pytest

from sidecar.config.resources import FilterChainMatch
from sidecar.server.filter_chain_match import Seen, match_filter_chain


def match(chains: dict[str, FilterChainMatch], seen: Seen) -> str | None:
    return match_filter_chain([(criteria, name) for name, criteria in chains.items()], seen)


MESH = {
    "mesh": FilterChainMatch(transport_protocol="tls", application_protocols=("pilotfish-h2", "h2")),
    "tls": FilterChainMatch(transport_protocol="tls"),
    "any": FilterChainMatch(),
}


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        (Seen(80, "tls", "", ("pilotfish-h2",)), "mesh"),
        (Seen(80, "tls", "", ("http/1.1", "h2")), "mesh"),
        (Seen(80, "tls", "", ("http/1.1",)), "tls"),
        (Seen(80, "tls"), "tls"),
        (Seen(80, "raw_buffer"), "any"),
    ],
)
def test_the_most_specific_chain_wins(seen: Seen, chosen: str) -> None:
    assert match(MESH, seen) == chosen


def test_a_chain_that_was_ruled_out_does_not_come_back() -> None:
    chains = {
        "secure": FilterChainMatch(destination_port=443, transport_protocol="tls"),
        "any": FilterChainMatch(),
    }
    assert match(chains, Seen(443, "tls")) == "secure"
    assert match(chains, Seen(443, "raw_buffer")) is None
    assert match(chains, Seen(80, "raw_buffer")) == "any"


def test_the_port_counts_before_the_name_and_the_name_before_the_protocol() -> None:
    chains = {
        "port": FilterChainMatch(destination_port=443),
        "name": FilterChainMatch(server_names=("a.example",)),
        "protocol": FilterChainMatch(application_protocols=("h2",)),
    }
    assert match(chains, Seen(443, "tls", "a.example", ("h2",))) == "port"
    assert match(chains, Seen(80, "tls", "a.example", ("h2",))) == "name"
    assert match(chains, Seen(80, "tls", "", ("h2",))) == "protocol"
    assert match(chains, Seen(80, "tls", "", ("h3",))) is None


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("a.b.example", "exact"),
        ("x.a.b.example", "near"),
        ("x.b.example", "far"),
        ("b.example", "rest"),
        ("", "rest"),
    ],
)
def test_the_longest_suffix_of_a_name_wins(name: str, chosen: str) -> None:
    chains = {
        "exact": FilterChainMatch(server_names=("a.b.example",)),
        "near": FilterChainMatch(server_names=("*.a.b.example",)),
        "far": FilterChainMatch(server_names=("*.b.example",)),
        "rest": FilterChainMatch(),
    }
    assert match(chains, Seen(443, "tls", name)) == chosen


def test_the_clients_first_choice_decides_between_two_protocols() -> None:
    chains = {
        "one": FilterChainMatch(application_protocols=("a",)),
        "two": FilterChainMatch(application_protocols=("b",)),
    }
    assert match(chains, Seen(443, "tls", "", ("x", "b", "a"))) == "two"


def test_no_chain_takes_what_none_matches() -> None:
    assert match({}, Seen(80)) is None
    assert match({"a": FilterChainMatch(destination_port=81)}, Seen(80)) is None
