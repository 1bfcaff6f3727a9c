"""What tests change of the healthy cluster of `operator_cluster`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.support.kube_api import KubeApi, Object
from tests.support.operator_cluster import SYSTEM, page, running, show_page

Change = Callable[[KubeApi], object]
PROBLEM = {"object": "HTTPRoute shop/r", "file": "", "field": "spec.rules[0]", "message": "no such Service"}
"""As a status page lists it, but for the severity."""


def replaced(kind: str, name: str, namespace: str = SYSTEM, **parts: Any) -> Change:
    return lambda api: api.put({**api.get(kind, name, namespace), **parts})


def gone(kind: str, name: str, namespace: str = SYSTEM) -> Change:
    return lambda api: api.delete(kind, name, namespace)


def pages(first: Object, second: Object | None = None) -> Change:
    """Of the two replicas."""

    def change(api: KubeApi) -> None:
        show_page(api, "cp-a", first)
        show_page(api, "cp-b", page() if second is None else second)

    return change


def certificates(**more: Any) -> Object:
    made = page()
    made["certificates"] |= more
    return made


def hook(**more: Any) -> Change:
    def change(api: KubeApi) -> None:
        found = copy.deepcopy(api.get("MutatingWebhookConfiguration", "pilotfish-injector", ""))
        found["webhooks"][0] |= more
        api.put(found)

    return change


def with_init(**state: Any) -> Object:
    pod = running("users-1")
    pod["status"]["initContainerStatuses"][0] = {"name": "pilotfish-init", **state}
    return pod
