"""Leads the applications of a pod that is not captured to its sidecar, by the variables of an ordinary proxy.

Used by `patch` and `second_pass`, on copies.
"""

from __future__ import annotations

from typing import Any

from mesh_api.names import OUTBOUND_PORT


def add_proxy_variables(container: dict[str, Any]) -> None:
    """All of them except those that the author of the pod has set in any spelling of case."""
    given = container.get("env") or []
    names = {str(variable.get("name", "")).lower() for variable in given}
    added = [variable for variable in _variables() if variable["name"].lower() not in names]
    if added:
        container["env"] = [*given, *added]


def _variables() -> list[dict[str, str]]:
    """The proxy is on loopback, so nobody else can use the pod's identity."""
    proxy = f"http://127.0.0.1:{OUTBOUND_PORT}"
    # Kubernetes expands $(NAME) from the variables of every container; one that is not there stays as text.
    direct = "localhost,127.0.0.1,::1,kubernetes.default.svc,$(KUBERNETES_SERVICE_HOST)"
    return [
        {"name": "HTTP_PROXY", "value": proxy},
        {"name": "http_proxy", "value": proxy},
        {"name": "grpc_proxy", "value": proxy},
        {"name": "NO_PROXY", "value": direct},
        {"name": "no_proxy", "value": direct},
    ]
