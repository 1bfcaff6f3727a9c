"""Sidecar processes from bootstraps written as dictionaries, and pairs of them with mTLS between."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.certs import CertificateFiles, TestCa, make_ca
from tests.support.processes import PILOTFISH, ROOT, Process, eventually, loopback

Tree = dict[str, Any]
_TYPES = "type.googleapis.com/envoy.extensions"
ADMIN = 15000
OUTBOUND = 15001
INBOUND = 15006
APP = 8080
SPIFFE = "spiffe://cluster.local/ns/test/sa/"
RETRY = {"retry_on": "connect-failure,refused-stream,reset-before-request,reset", "num_retries": 2}


class Sidecar(Process):
    """`pilotfish sidecar` with its admin port on `address`."""

    def __init__(
        self,
        name: str,
        bootstrap: Tree | str | Path,
        directory: Path,
        *options: str,
        cwd: Path = ROOT,
    ) -> None:
        file = bootstrap if isinstance(bootstrap, Path) else directory / f"{name}.yaml"
        if not isinstance(bootstrap, Path):
            file.write_text(bootstrap if isinstance(bootstrap, str) else yaml.safe_dump(bootstrap))
        tree = yaml.safe_load(file.read_text())
        found = tree.get("admin", {}).get("address", {}).get("socket_address", {})
        self.admin = (found.get("address", ""), found.get("port_value", 0))
        super().__init__(name, [PILOTFISH, "sidecar", "--config", file, *options], directory, cwd)

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body of an admin page. Raises OSError where nobody answers."""
        request = urllib.request.Request(f"http://{self.admin[0]}:{self.admin[1]}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5.0) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def json(self, path: str) -> Any:
        status, text = self.get(path)
        assert status == 200, text
        return json.loads(text)

    def stats(self, table: str, **labels: str) -> Tree:
        """The one row of `/stats` with these labels."""
        rows = [
            row
            for row in self.json("/stats")[table]
            if all(row.get("labels", row).get(name) == value for name, value in labels.items())
        ]
        assert len(rows) == 1, rows
        return dict(rows[0])

    def ready(self) -> Sidecar:
        """Waits until it takes traffic."""

        def is_ready() -> bool:
            self.check()
            status, text = self.get("/ready")
            assert status == 200, text
            return True

        eventually(is_ready, f"{self} to be ready")
        return self

    def access_log(self) -> list[Tree]:
        return [json.loads(line) for line in self.out.read_text().splitlines() if line.startswith("{")]

    def logged(self, **fields: object) -> Tree:
        """The access-log line with these values, once it is written."""

        def found() -> Tree | None:
            lines = self.access_log()
            return next((x for x in lines if all(x[k] == v for k, v in fields.items())), None)

        line = eventually(found, f"an access-log line of {self.name} with {fields}")
        assert line is not None
        return line


def address(host: str, port: int) -> Tree:
    return {"socket_address": {"address": host, "port_value": port}}


def any_of(kind: str, **fields: Any) -> Tree:
    return {"@type": f"{_TYPES}.{kind}", **fields}


def tls(kind: str, files: CertificateFiles, peer: str, **fields: Any) -> Tree:
    """A transport socket; `kind` is Upstream or Downstream, `peer` the account to expect."""
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {
                "certificate_chain": {"filename": files.certificate},
                "private_key": {"filename": files.private_key},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": files.ca},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": SPIFFE + peer}}],
        },
    }
    typed = any_of(f"transport_sockets.tls.v3.{kind}TlsContext", common_tls_context=context, **fields)
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def route(prefix: str = "/", cluster: str = "peer", **action: Any) -> Tree:
    """A route without a time limit unless `timeout` says one."""
    return {
        "name": prefix,
        "match": {"prefix": prefix},
        "route": {"cluster": cluster, "timeout": "0s", **action},
    }


def http_filter(routes: Sequence[Tree], **fields: Any) -> Tree:
    """A network filter: the HTTP connection manager with these routes and an access log."""
    log = any_of("access_loggers.stream.v3.StdoutAccessLog")
    manager = any_of(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        stream_idle_timeout="0s",
        access_log=[{"name": "envoy.access_loggers.stdout", "typed_config": log}],
        route_config={
            "name": "table",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(routes)}],
        },
        http_filters=[
            {"name": "envoy.filters.http.router", "typed_config": any_of("filters.http.router.v3.Router")}
        ],
        **fields,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def listener(name: str, at: Tree, network: Tree, socket: Tree | None = None, **fields: Any) -> Tree:
    chain: Tree = {"filters": [network]}
    if socket is not None:
        chain["transport_socket"] = socket
    return {"name": name, "address": at, "filter_chains": [chain], **fields}


def cluster(name: str, endpoints: Sequence[tuple[str, int]], http2: bool = False, **fields: Any) -> Tree:
    tree: Tree = {
        "name": name,
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(*at)}} for at in endpoints]}],
        },
        **fields,
    }
    if http2:
        options = {"initial_stream_window_size": 262144, "initial_connection_window_size": 1048576}
        name = "upstreams.http.v3.HttpProtocolOptions"
        tree["typed_extension_protocol_options"] = {
            f"envoy.extensions.{name}": any_of(name, explicit_http_config={"http2_protocol_options": options})
        }
    return tree


def bootstrap(host: str, listeners: Sequence[Tree], clusters: Sequence[Tree], **fields: Any) -> Tree:
    static = {"listeners": list(listeners), "clusters": list(clusters)}
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": address(host, ADMIN)},
        "static_resources": static,
        **fields,
    }


class Pair:
    """An outbound sidecar with plain HTTP in, and inbound sidecars that each serve the application on
    their own address; mTLS 1.3 between. Start it with `start`, one inbound for each of `hosts`."""

    def __init__(self, directory: Path, hosts: int = 1, ca: TestCa | None = None) -> None:
        self.directory = directory
        self.host = loopback()
        self.hosts = [loopback() for _ in range(hosts)]
        self.ca = ca or make_ca()
        self.files = {
            name: self.ca.write_files(directory, SPIFFE + name, name=name) for name in ("caller", "server")
        }
        self.outbound: Sidecar
        self.inbound: list[Sidecar] = []
        self.started: list[Sidecar] = []

    def outbound_tree(self, routes: Sequence[Tree] = (), **fields: Any) -> Tree:
        socket = tls("Upstream", self.files["caller"], "server", sni="server.test")
        made = cluster("peer", [(h, INBOUND) for h in self.hosts], True, transport_socket=socket, **fields)
        network = http_filter(routes or [route(retry_policy=RETRY)])
        return bootstrap(self.host, [listener("out", address(self.host, OUTBOUND), network)], [made])

    def inbound_tree(self, host: str, http2_app: bool = False, **fields: Any) -> Tree:
        network = http_filter(
            [route(cluster="app")],
            forward_client_cert_details="SANITIZE_SET",
            set_current_client_cert_details={"uri": True},
            **fields,
        )
        socket = tls("Downstream", self.files["server"], "caller", require_client_certificate=True)
        made = listener("in", address(host, INBOUND), network, socket, traffic_direction="INBOUND")
        return bootstrap(host, [made], [cluster("app", [(host, APP)], http2_app)])

    def start(self, outbound: Tree | None = None, options: Mapping[str, Sequence[str]] | None = None) -> Pair:
        given = options or {}
        for i, host in enumerate(self.hosts):
            name = f"inbound-{i}"
            self.inbound.append(self.run(name, self.inbound_tree(host), *given.get("inbound", ())))
        self.outbound = self.run("outbound", outbound or self.outbound_tree(), *given.get("outbound", ()))
        for sidecar in (*self.inbound, self.outbound):
            sidecar.ready()
        return self

    def run(self, name: str, tree: Tree, *options: str) -> Sidecar:
        """One more sidecar that is stopped with the pair."""
        sidecar = Sidecar(name, tree, self.directory, *options)
        self.started.append(sidecar)
        return sidecar

    def stop(self) -> None:
        for sidecar in self.started:
            sidecar.stop()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Pair {self.host} to {self.hosts}>"
