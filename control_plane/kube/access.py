"""Where the API server is and how to prove who we are: in a pod, or from a kubeconfig file.

Used by `client`. Files are read again when they change, because the kubelet replaces tokens and CAs while
we run. Must never write a key where others could read it, and never show a token.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

POD_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts token, CA and namespace of a pod."""


class AccessError(Exception):
    """The API server cannot be reached as configured; the text says what is wrong and what to do."""


@dataclass(slots=True)
class ClusterAccess:
    """One API server, and our identity there."""

    server: str
    """`https://HOST:PORT`, perhaps with a path; no trailing slash."""
    namespace: str = ""
    """Our own in a pod, the context's in a kubeconfig; empty: not said."""
    ca_file: Path | None = None
    ca_data: str = ""
    """PEM. Without file and data the system's CAs count."""
    token_file: Path | None = None
    fixed_token: str = field(default="", repr=False)
    client_certificate: str = field(default="", repr=False)
    """PEM chain; with `client_key`."""
    client_key: str = field(default="", repr=False)
    server_name: str = ""
    """Expected in the certificate instead of the host."""
    verify: bool = True
    _context: ssl.SSLContext | None = field(default=None, repr=False)
    _context_of: int = field(default=0, repr=False)

    def token(self) -> str:
        """The bearer token as it is now; empty where a client certificate proves us. Raises AccessError."""
        if self.token_file is None:
            return self.fixed_token
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise AccessError(f"cannot read the token {self.token_file}: {error.strerror}") from error

    def tls(self) -> ssl.SSLContext:
        """The context for connections; a new one when the CA file was replaced. Raises AccessError."""
        try:
            stamp = self.ca_file.stat().st_mtime_ns if self.ca_file else 0
            if self._context is None or stamp != self._context_of:
                self._context, self._context_of = self._make_context(), stamp
        except (OSError, ssl.SSLError) as error:
            raise AccessError(f"TLS for {self.server} cannot be set up: {error}") from error
        return self._context

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(
            cafile=str(self.ca_file) if self.ca_file else None, cadata=self.ca_data or None
        )
        # Python 3.13 asks for extensions that the root of many a cluster lacks, and that RFC 5280 section
        # 4.2.1.1 leaves to self-signed ones.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.client_certificate:
            with tempfile.TemporaryDirectory() as private:  # of mode 0700
                pair = Path(private) / "client.pem"
                pair.write_text(f"{self.client_certificate}\n{self.client_key}")
                context.load_cert_chain(pair)
        return context


def in_cluster(environment: Mapping[str, str], directory: Path = POD_DIRECTORY) -> ClusterAccess:
    """As a pod reaches its cluster. Raises AccessError outside of one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise AccessError("not in a pod: KUBERNETES_SERVICE_HOST is not set; name a file with --kubeconfig")
    token, ca = directory / "token", directory / "ca.crt"
    for path in (token, ca):
        if not path.exists():
            raise AccessError(
                f"{path} is missing: the pod needs its service account (automountServiceAccountToken)"
            )
    namespace = directory / "namespace"
    return ClusterAccess(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace.read_text().strip() if namespace.exists() else "",
        ca_file=ca,
        token_file=token,
    )


def from_kubeconfig(path: Path) -> ClusterAccess:
    """The current context of a kubeconfig file. Raises AccessError."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise AccessError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise AccessError(f"{path} is no kubeconfig")
    return from_context(path, config, config.get("current-context"))


def from_context(path: Path, config: Mapping[str, Any], name: object) -> ClusterAccess:
    """The named context of `config`, which was read from `path`: relative files in it are looked for
    beside it. Raises AccessError."""
    if not name:
        raise AccessError(f"{path} has no current-context: choose one with kubectl config use-context")
    context = _named(path, config, "context", name)
    cluster = _named(path, config, "cluster", context.get("cluster"))
    user = _named(path, config, "user", context["user"]) if context.get("user") else {}
    for plugin in ("exec", "auth-provider"):
        if user.get(plugin):
            raise AccessError(
                f"user {context['user']!r} of {path} logs in with a program ({plugin}), which is not "
                "supported: use a token or a client certificate, for example that of a ServiceAccount"
            )
    server = str(cluster.get("server", "")).rstrip("/")
    if not server.startswith("https://"):
        raise AccessError(f"the server {server!r} of {path} is no https:// address")
    certificate = _pem(path, user, "client-certificate")
    key = _pem(path, user, "client-key")
    if bool(certificate) != bool(key):
        raise AccessError(f"{path} has only one of client-certificate and client-key")
    token_file = user.get("tokenFile")
    return ClusterAccess(
        server=server,
        namespace=str(context.get("namespace") or ""),
        ca_data=_pem(path, cluster, "certificate-authority"),
        token_file=path.parent / token_file if token_file else None,
        fixed_token=str(user.get("token") or ""),
        client_certificate=certificate,
        client_key=key,
        server_name=str(cluster.get("tls-server-name") or ""),
        verify=not cluster.get("insecure-skip-tls-verify", False),
    )


def _named(path: Path, config: Mapping[str, Any], kind: str, name: object) -> dict[str, Any]:
    for item in config.get(f"{kind}s") or []:
        if item.get("name") == name:
            found = item.get(kind)
            return found if isinstance(found, dict) else {}
    raise AccessError(f"{path} has no {kind} named {name!r}")


def _pem(path: Path, owner: Mapping[str, Any], key: str) -> str:
    """From `KEY-data` (base64) or the file `KEY`; empty when there is neither."""
    try:
        if owner.get(f"{key}-data"):
            return base64.b64decode(owner[f"{key}-data"], validate=True).decode()
        if owner.get(key):
            return (path.parent / Path(str(owner[key])).expanduser()).read_text()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise AccessError(f"{key}-data of {path} is not base64 of PEM: {error}") from error
    except OSError as error:
        raise AccessError(f"cannot read {key} of {path}: {error}") from error
    return ""
