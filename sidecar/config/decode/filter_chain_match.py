"""Envoy `FilterChainMatch`: the criteria that `server/filter_chain_match.py` knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import FilterChainMatch

_MATCH = Fields("destination_port server_names transport_protocol application_protocols", "name")
_TRANSPORTS = ("", "tls", "raw_buffer")
_PLAIN_PROTOCOLS = ("http/1.0", "h2c")
"""What Envoy's http_inspector says of plain text, beside `http/1.1`, which is also an ALPN."""


def filter_chain_match(view: View) -> FilterChainMatch:
    """The criteria of one filter chain; an empty message takes everything."""
    view.check(_MATCH)
    transport = view.text("transport_protocol")
    if transport not in _TRANSPORTS:
        view.error(f"{transport} is not supported; supported are tls and raw_buffer", "transport_protocol")
    protocols = view.texts("application_protocols")
    if protocols and (transport == "raw_buffer" or set(protocols) & set(_PLAIN_PROTOCOLS)):
        view.error(
            "only for ALPN of TLS; in plain text the protocol is found out by itself", "application_protocols"
        )
    names = view.texts("server_names")
    for index, name in enumerate(names):
        if "*" in name.removeprefix("*.") or not name:
            view.error(f"{name!r} is neither a name nor *.suffix", f"server_names[{index}]")
    return FilterChainMatch(
        destination_port=view.number("destination_port", 0, 1, 65535),
        server_names=tuple(name.lower() for name in names),
        transport_protocol=transport,
        application_protocols=protocols,
    )


def check_distinct(chains: Sequence[tuple[View, FilterChainMatch]]) -> None:
    """Note every filter chain that could only ever get what an earlier one takes, as Envoy does."""
    seen: dict[tuple[int, str, str, str], str] = {}
    for view, match in chains:
        for names_and_protocols in product(match.server_names or ("",), match.application_protocols or ("",)):
            key = (match.destination_port, match.transport_protocol, *names_and_protocols)
            other = seen.setdefault(key, view.path)
            if other != view.path:
                view.error(f"matches the same connections as {other}", "filter_chain_match")
                break
