"""Settings of capture: what can be written, and what it means."""

from __future__ import annotations

import itertools
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.capture.settings import CaptureSettings, contains, parse_networks, parse_ports

ports = st.integers(1, 65535)
ranges = st.tuples(ports, ports).map(lambda ends: (min(ends), max(ends)))


def written(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


@given(st.lists(ranges | ports.map(lambda port: (port, port)), max_size=30))
def test_port_lists_hold_the_ports_that_are_written(given_ranges: list[tuple[int, int]]) -> None:
    parsed = parse_ports(",".join(written(*ends) for ends in given_ranges))
    edges = {edge for ends in (*given_ranges, *parsed) for end in ends for edge in (end - 1, end, end + 1)}
    for port in edges:
        assert contains(parsed, port) == any(low <= port <= high for low, high in given_ranges)
    # nftables refuses intervals that overlap; neighbours are one.
    for (_, last), (first, _) in itertools.pairwise(parsed):
        assert last + 1 < first
    assert parse_ports(",".join(written(*ends) for ends in parsed)) == parsed


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_has_no_ports(text: str) -> None:
    assert parse_ports(text) == ()


def test_ports_may_be_written_with_spaces() -> None:
    assert parse_ports(" 9090, 22,8000 - 8100,") == ((22, 22), (8000, 8100), (9090, 9090))


@pytest.mark.parametrize(
    "part",
    [
        "0",
        "65536",
        "-1",
        "80-",
        "-",
        "90-80",
        "0-10",
        "80:90",
        "http",
        "8 0",
        "1-2-3",
        "٨٠",
        "²",
        "0x50",
        "8e1",
    ],
)
def test_a_wrong_port_is_named(part: str) -> None:
    with pytest.raises(ValueError, match="port ") as caught:
        parse_ports(f"9090,{part}")
    assert repr(part) in str(caught.value)


def test_networks_are_merged_and_sorted() -> None:
    text = "fd00::/8, 10.1.0.0/16,10.0.0.0/8,192.0.2.7,fd12::1"
    assert parse_networks(text) == tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8")))


@pytest.mark.parametrize("part", ["10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0", "fe80::1%eth0/64"])
def test_a_wrong_network_is_named(part: str) -> None:
    with pytest.raises(ValueError, match="CIDR ") as caught:
        parse_networks(f"10.0.0.0/8,{part}")
    assert repr(part) in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outbound_port": 0}, "port 0: expected 1 to 65535"),
        ({"inbound_port": 65536}, "port 65536: expected 1 to 65535"),
        ({"inbound_port": 15001}, "must differ"),
        ({"admin_port": 15006}, "must differ"),
        ({"proxy_user": -1}, "user -1: expected"),
        ({"proxy_user": 2**32 - 1}, "user 4294967295: expected"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptureSettings(**wrong)


def test_what_is_captured() -> None:
    settings = CaptureSettings(
        skip_outbound_ports=parse_ports("7000-7100"), excluded=parse_networks("10.0.0.0/8,fd00::/8")
    )
    for address, port, captured in (
        ("192.0.2.1", 80, True),
        ("192.0.2.1", 7050, False),
        ("192.0.2.1", 53, False),
        ("192.0.2.1", 15010, False),
        ("10.255.0.1", 80, False),
        ("11.0.0.1", 80, True),
        ("fd12::1", 80, False),
        ("2001:db8::1", 80, True),
    ):
        assert settings.captures_call_to(address, port) is captured
