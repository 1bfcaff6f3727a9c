"""Names that a sidecar has to find, for pods that ask other name servers than the cluster's.

Used by `patch`; the webhook knows the addresses. Such a pod gets an entry in its `/etc/hosts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from control_plane.injector.sidecar_container import InjectionSettings

_OWN_SERVERS = ("Default", "None")
"""Values of `dnsPolicy`: the node's name servers, or those that the pod names."""


def sought_services(settings: InjectionSettings) -> Iterator[tuple[str, str, str]]:
    """The host that a sidecar calls, with namespace and name of the Service that it is; what is none, or an
    address, is left out."""
    for target in (settings.control_plane, settings.otlp):
        host = target.rpartition(":")[0]
        match host.split("."):
            case [name, namespace, "svc", *_]:
                yield host, namespace, name


def add_host_aliases(spec: dict[str, Any], settings: InjectionSettings, warnings: list[str]) -> None:
    """To the spec of a pod, if it needs them."""
    policy = spec.get("dnsPolicy")
    if policy not in _OWN_SERVERS:
        return
    known = {host: settings.addresses.get(host, ()) for host, _, _ in sought_services(settings)}
    aliases = [{"ip": each, "hostnames": [host]} for host, found in known.items() for each in found]
    if aliases:
        spec["hostAliases"] = [*(spec.get("hostAliases") or ()), *aliases]
    for host in [host for host, found in known.items() if not found]:
        warnings.append(
            f"pilotfish: dnsPolicy is {policy}, and the address of {host} is not known here: the sidecar "
            "finds it only if the pod's own name servers know it"
        )
