"""What the control plane is started with, and how its command line is read.

Used by the app, by `python -m control_plane` and by the `pilotfish` command.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from control_plane.listening import ALL
from mesh_api.names import CLUSTER_DOMAIN, DEFAULT_TRUST_DOMAIN, STATUS_PORT, XDS_PORT

DEFAULT_CA_DIR = Path.home() / ".pilotfish" / "ca"

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Settings:
    config_dir: Path = Path()
    """Folder of Kubernetes YAML files, watched; unused with `kubernetes`."""
    kubernetes: bool = False
    """Read from a cluster's API server; keys are in a Secret there and `ca_dir` is not used."""
    kubeconfig: Path | None = None
    """How to reach it; None: as a pod does."""
    namespace: str = ""
    """Our own, for Secret and Lease; empty: that of the pod or of the kubeconfig's context."""
    listen: str = f"127.0.0.1:{XDS_PORT}"
    """`HOST:PORT` of ADS and the signing RPC, gRPC over TLS. Here, in `status` and in `injector` HOST may be
    `*`: all addresses, IPv4 and IPv6."""
    status: str = f"127.0.0.1:{STATUS_PORT}"
    """`HOST:PORT` of the status page, metrics and readiness, plain HTTP."""
    ca_dir: Path = DEFAULT_CA_DIR
    """Keys of the root and of the join tokens; `root.pem` there is what sidecars trust."""
    ca_cert: Path | None = None
    ca_key: Path | None = None
    """The issuer, where it is not to be made in `ca_dir`."""
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster_domain: str = CLUSTER_DOMAIN
    """That names of Services end in for the cluster's DNS: `users.shop.svc.DOMAIN`."""
    max_leaf_lifetime: timedelta = timedelta(hours=24)
    server_names: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """DNS names and IP addresses in the control plane's own certificate."""
    push_quiet: timedelta = timedelta(milliseconds=100)
    push_longest: timedelta = timedelta(seconds=10)
    """Changes are pushed when none came for `push_quiet`, after `push_longest` at the latest."""
    max_connection_age: timedelta = timedelta(minutes=30)
    """After this time, give or take a tenth, a client is asked to connect anew, maybe to another replica."""
    tracing_sampling: float | None = None
    """Percent of new traces that sidecars record; None: sidecars are told nothing of tracing."""
    tracing_cluster: str = ""
    """Static cluster of each sidecar's bootstrap that takes OTLP; empty: nothing is exported."""
    access_log: bool = True
    """Whether sidecars write an access log."""
    overload_protection: bool = True
    """Sidecars limit what their application is given at once (adaptive concurrency)."""
    stop_grace: timedelta = timedelta(seconds=5)
    injector: str = ""
    """`HOST:PORT` of the webhook that gives new pods their sidecar, HTTPS; empty: there is none."""
    sidecar_image: str = ""
    init_image: str = ""
    """Of the init container that captures; empty: no pod is captured."""
    capture: bool = True
    """Whether pods are captured that do not say."""
    native_sidecars: str = "auto"
    """Whether sidecars of pods that do not say are init containers that run on: `on`, `off`, or `auto`, by
    the API server's version."""
    sidecar_control_plane: str = ""
    """`HOST:PORT` by which sidecars reach us."""
    sidecar_otlp: str = ""
    """`HOST:PORT` of the OTLP/HTTP collector that injected sidecars call `otlp`; empty: they have none."""


def parse_duration(text: str) -> timedelta:
    """`1h30m`, `10s`, `100ms`; a bare number is seconds. Raises ValueError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return timedelta(seconds=float(text))
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration: {text!r}; expected a form like 24h, 1h30m, 10s or 100ms")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPv6]:PORT` into its parts, without the brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError(f"not an address: {text!r}; expected HOST:PORT or [IPv6]:PORT")
    return host.strip("[]"), int(port)


def parse_account(text: str) -> tuple[str, str]:
    """`NAMESPACE/ACCOUNT` into its parts. Raises ValueError."""
    namespace, slash, account = text.partition("/")
    if not slash or not namespace or not account or "/" in account:
        raise ValueError(f"not a service account: {text!r}; expected NAMESPACE/ACCOUNT")
    return namespace, account


_DEFAULTS = Settings()


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Watches a cluster or a folder of Kubernetes YAML, issues identities, configures sidecars"
        " over xDS.",
        epilog="HOST of --listen, --status and --injector may be *: all addresses, IPv4 and IPv6.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-dir", type=Path, help="folder of Kubernetes YAML files, watched")
    add("--kubernetes", action="store_true", help="instead of a folder, watch the cluster of this pod")
    add("--kubeconfig", type=Path, metavar="FILE", help="instead of this pod's, watch this file's cluster")
    add(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", ""),
        help="own namespace in the cluster, for keys and leader election (default $POD_NAMESPACE)",
    )
    add("--listen", type=_address, default=_DEFAULTS.listen, help="ADS and signing (default %(default)s)")
    add("--status", type=_address, default=_DEFAULTS.status, help="status page (default %(default)s)")
    add("--ca-dir", type=Path, default=DEFAULT_CA_DIR, help="keys, and root.pem (default %(default)s)")
    add("--ca-cert", type=Path, help="PEM: issuer first, root last; default: made in --ca-dir")
    add("--ca-key", type=Path, help="PEM: the issuer's ECDSA key")
    add("--trust-domain", default=DEFAULT_TRUST_DOMAIN, help="default %(default)s")
    add("--cluster-domain", default=CLUSTER_DOMAIN, help="of the cluster's DNS (default %(default)s)")
    add("--max-leaf-ttl", type=_duration, default=timedelta(hours=24), help="of certificates (default 24h)")
    add(
        "--server-name",
        default=",".join(_DEFAULTS.server_names),
        help="names and addresses by which sidecars reach this server (default %(default)s)",
    )
    add("--push-quiet", type=_duration, default=_DEFAULTS.push_quiet, help="default 100ms")
    add("--push-longest", type=_duration, default=_DEFAULTS.push_longest, help="default 10s")
    add("--max-connection-age", type=_duration, default=_DEFAULTS.max_connection_age, help="default 30m")
    add("--tracing-sampling", type=float, metavar="PERCENT", help="of new traces; default: no tracing")
    add("--tracing-cluster", default="", help="static cluster of the sidecars that takes OTLP")
    add("--no-access-log", action="store_true", help="sidecars write no access log")
    add("--no-overload-protection", action="store_true", help="applications get all at once")
    _add_injection(parser)
    return parser


def _add_injection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--injector", type=_address, metavar="HOST:PORT", help="webhook; default: no injection")
    add("--sidecar-image", default="", help="of injected sidecars")
    add("--init-image", default="", help="of the init container that captures; default: no capture")
    add("--no-capture", action="store_true", help="capture only pods that ask for it")
    add(
        "--native-sidecars",
        choices=("auto", "on", "off"),
        default="auto",
        help="auto: by the API server's version",
    )
    add("--sidecar-control-plane", type=_callee, metavar="HOST:PORT", help="what they call")
    add("--sidecar-otlp", type=_callee, metavar="HOST:PORT", help="where they send spans")


def parse_arguments(arguments: Sequence[str], prog: str | None = None) -> Settings:
    """The settings that a command line asks for. Ends the process with a message if it is wrong."""
    parser = _parser(prog)
    given = parser.parse_args(arguments)
    kubernetes = given.kubernetes or given.kubeconfig is not None
    if kubernetes == (given.config_dir is not None):
        parser.error("give one of --config-dir and --kubernetes")
    if (given.ca_cert is None) != (given.ca_key is None):
        parser.error("--ca-cert and --ca-key go together")
    if given.injector and not (kubernetes and given.sidecar_image and given.sidecar_control_plane):
        parser.error("--injector needs --kubernetes, --sidecar-image and --sidecar-control-plane")
    if given.max_leaf_ttl < timedelta(seconds=1):
        parser.error("--max-leaf-ttl must be at least 1s")
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", given.trust_domain):
        parser.error(f"--trust-domain {given.trust_domain!r}: lower-case letters, digits, dots, dashes only")
    if not _DNS_NAME.fullmatch(given.cluster_domain):
        parser.error(
            f"--cluster-domain {given.cluster_domain!r}: a DNS name in lower case, such as cluster.local"
        )
    if not given.server_name.isascii():
        parser.error("--server-name: internationalised names are given in their xn-- form")
    if given.tracing_sampling is not None and not 0 <= given.tracing_sampling <= 100:
        parser.error("--tracing-sampling is a percentage, from 0 to 100")
    return Settings(
        config_dir=given.config_dir or Path(),
        kubernetes=kubernetes,
        kubeconfig=given.kubeconfig,
        namespace=given.namespace,
        listen=given.listen,
        status=given.status,
        ca_dir=given.ca_dir,
        ca_cert=given.ca_cert,
        ca_key=given.ca_key,
        trust_domain=given.trust_domain,
        cluster_domain=given.cluster_domain,
        max_leaf_lifetime=given.max_leaf_ttl,
        server_names=tuple(name.strip() for name in given.server_name.split(",") if name.strip()),
        push_quiet=given.push_quiet,
        push_longest=given.push_longest,
        max_connection_age=given.max_connection_age,
        tracing_sampling=given.tracing_sampling,
        tracing_cluster=given.tracing_cluster,
        access_log=not given.no_access_log,
        overload_protection=not given.no_overload_protection,
        injector=given.injector or "",
        sidecar_image=given.sidecar_image,
        init_image=given.init_image,
        capture=not given.no_capture,
        native_sidecars=given.native_sidecars,
        sidecar_control_plane=given.sidecar_control_plane or "",
        sidecar_otlp=given.sidecar_otlp or "",
    )


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _address(text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _callee(text: str) -> str:
    if split_address(_address(text))[0] == ALL:
        raise argparse.ArgumentTypeError(f"{text!r} names nobody; expected HOST:PORT or [IPv6]:PORT")
    return text
