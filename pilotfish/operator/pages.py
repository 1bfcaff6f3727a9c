"""The tables of `pilotfish proxy-config`: what a sidecar's admin pages say, in columns.

Pure: the JSON of a page in, rows out. Fields that a sidecar of another version does not send stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilotfish.operator.table import span

Rows = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Page:
    """One thing to see."""

    path: str
    """Of the admin port."""
    head: tuple[str, ...]
    rows: Callable[[Any], Rows]
    part: Callable[[Any], Any] = lambda value: value
    """What `--output json` shows of the page."""


def listener_rows(listeners: Iterable[Mapping[str, Any]]) -> Rows:
    return [
        (
            str(listener.get("name", "")),
            _bound(listener),
            "inbound" if listener.get("inbound") else "outbound",
            ", ".join(dict.fromkeys(_chain(listener, chain) for chain in _chains(listener))),
        )
        for listener in sorted(listeners, key=lambda item: (not item.get("inbound"), str(item.get("name"))))
    ]


def _chains(listener: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    chains = [*(listener.get("filter_chains") or ()), listener.get("default_filter_chain")]
    return [chain for chain in chains if chain]


def _bound(listener: Mapping[str, Any]) -> str:
    """Where it listens, or which destination it is given connections for."""
    more = listener.get("additional_addresses") or ()
    text = ", ".join(map(_address, (listener.get("address"), *more)))
    return text if listener.get("bind_to_port", True) else f"{text} (captured)"


def _chain(listener: Mapping[str, Any], chain: Mapping[str, Any]) -> str:
    """What is spoken, by what it goes on, and whether the caller has to be of the mesh."""
    network = chain.get("network") or {}
    tls = chain.get("tls")
    spoken = "mTLS" if tls and tls.get("require_client_certificate") else "TLS" if tls else "plain"
    if "codec" not in network:
        return f"{spoken} TCP to {_weighted(network.get('clusters') or [])}"
    if network.get("on_demand"):
        captured = ", captured by destination" if listener.get("original_dst") else ""
        return f"{spoken} HTTP by authority{captured}"
    table = network.get("route_config") or {}
    return f"{spoken} HTTP by {network.get('rds_route_name') or table.get('name') or '?'}"


def route_rows(dump: Mapping[str, Any]) -> Rows:
    rows: Rows = []
    inline = [
        chain["network"]["route_config"]
        for listener in (*dump["bootstrap"]["listeners"], *dump["listeners"])
        for chain in _chains(listener)
        if (chain.get("network") or {}).get("route_config")
    ]
    for config in (*dump["routes"], *inline):
        for host in config["virtual_hosts"]:
            domains = ",".join(host["domains"])
            rows += [
                (config["name"], domains, _match(r["match"]), _action(r), r["name"]) for r in host["routes"]
            ]
    rows += [(name, "", "", str(why), "") for name, why in dump["missing"].items()]
    return rows


def _match(match: Mapping[str, Any]) -> str:
    marks = {"prefix": "*", "path": "", "path_separated_prefix": "/*"}
    parts = [f"{match[key]}{mark}" for key, mark in marks.items() if match.get(key) is not None]
    if match.get("regex") is not None:
        parts.append(f"~{match['regex']}")
    parts += ["CONNECT"] if match.get("connect") else []
    parts += ["gRPC"] if match.get("grpc") else []
    parts += [f"header {header.get('name')}" for header in match.get("headers") or ()]
    parts += [f"query {query.get('name')}" for query in match.get("query") or ()]
    return " ".join(parts)


def _action(route: Mapping[str, Any]) -> str:
    if route.get("redirect"):
        return "redirect"
    if route.get("direct_response"):
        return f"answer {route['direct_response'].get('status', '')}".strip()
    return _weighted((route.get("action") or {}).get("clusters") or [])


def _weighted(clusters: Sequence[Mapping[str, Any]]) -> str:
    total = sum(cluster["weight"] for cluster in clusters)
    if len(clusters) == 1:
        return str(clusters[0]["name"])
    return ", ".join(f"{c['name']} {round(100 * c['weight'] / total) if total else 0}%" for c in clusters)


def cluster_rows(clusters: Iterable[Mapping[str, Any]]) -> Rows:
    return [
        (
            cluster["name"],
            cluster["discovery"],
            cluster["lb_policy"],
            cluster["protocol"],
            "TLS" if cluster["tls"] else "plain",
            f"{sum(_usable(endpoint) for endpoint in cluster['endpoints'])}/{len(cluster['endpoints'])}",
            str(cluster["requests_active"]),
            "; ".join(f"{host}: {error}" for host, error in cluster["dns_errors"].items()),
        )
        for cluster in sorted(clusters, key=lambda item: str(item["name"]))
    ]


def _usable(endpoint: Mapping[str, Any]) -> bool:
    return bool(endpoint["health"] == "HEALTHY" and endpoint["ejection"] != "EJECTED")


def endpoint_rows(clusters: Iterable[Mapping[str, Any]]) -> Rows:
    return [
        (
            cluster["name"],
            endpoint["name"],
            endpoint["address"],
            _health(endpoint),
            endpoint["locality"] or "-",
            str(endpoint["weight"]),
            "-" if endpoint["latency_ms"] is None else f"{endpoint['latency_ms']:.1f} ms",
            str(endpoint["requests"]),
            str(endpoint["failures"]),
        )
        for cluster in sorted(clusters, key=lambda item: str(item["name"]))
        for endpoint in cluster["endpoints"]
    ]


def _health(endpoint: Mapping[str, Any]) -> str:
    if endpoint["ejection"] == "EJECTED":
        return f"ejected for {span(endpoint['ejected_for'])}"
    return str(endpoint["health"]).lower()


def certificate_rows(providers: Mapping[str, Mapping[str, Any]]) -> Rows:
    return [
        (
            name,
            entry["spiffe_id"],
            entry["serial"] or "none yet",
            entry["not_after"] or "-",
            "-" if entry["seconds_left"] is None else span(entry["seconds_left"]),
            entry["last_error"] or "",
        )
        for name, entry in providers.items()
    ]


def _address(address: object) -> str:
    if not isinstance(address, dict):
        return "-"
    host = str(address["host"])
    return f"[{host}]:{address['port']}" if ":" in host else f"{host}:{address['port']}"


PAGES = {
    "listeners": Page("/listeners", ("NAME", "ADDRESS", "DIRECTION", "WHAT"), listener_rows),
    "routes": Page(
        "/config_dump",
        ("TABLE", "DOMAINS", "MATCH", "TO", "ROUTE"),
        route_rows,
        lambda dump: {"routes": dump["routes"], "missing": dump["missing"]},
    ),
    "clusters": Page(
        "/clusters",
        ("NAME", "DISCOVERY", "BALANCING", "PROTOCOL", "TLS", "USABLE", "ACTIVE", "DNS"),
        cluster_rows,
    ),
    "endpoints": Page(
        "/clusters",
        ("CLUSTER", "NAME", "ADDRESS", "STATE", "LOCALITY", "WEIGHT", "LATENCY", "REQUESTS", "FAILURES"),
        endpoint_rows,
    ),
    "certs": Page(
        "/certs", ("PROVIDER", "IDENTITY", "SERIAL", "ENDS", "LEFT", "LAST ERROR"), certificate_rows
    ),
}
"""By the word of the command line."""
