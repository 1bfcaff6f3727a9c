"""Whether the network plugin leaves it to pods where their connections go, by its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pilotfish.operator import network_facts
from tests.support.kube_api import KubeApi, Object
from tests.support.served_cluster import Served

Change = Callable[[KubeApi], object]
CILIUM: dict[str, Object] = {"/apis/cilium.io/v2": {"resources": [{"name": "ciliumendpoints"}]}}


def cilium(**settings: str) -> Change:
    """Cilium is the network plugin, with these settings."""

    def change(api: KubeApi) -> None:
        api.documents.update(CILIUM)
        metadata = {"name": "cilium-config", "namespace": "kube-system"}
        api.put({"kind": "ConfigMap", "metadata": metadata, "data": settings})

    return change


def calico(version: str, **spec: Any) -> Change:
    """Calico is the network plugin, with its objects in this group, and these settings."""

    def change(api: KubeApi) -> None:
        api.documents[f"/apis/{version}"] = {"resources": [{"name": "felixconfigurations"}]}
        api.put({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec})

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            cilium(**{"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "false"}),
            "failed Cilium chooses pods before sidecars do (its bpf-lb-sock-hostns-only is not true): "
            "routes, balancing and retries have no effect in captured pods",
        ),
        (
            cilium(**{"kube-proxy-replacement": "false", "bpf-lb-sock": "true"}),
            "failed Cilium chooses pods before sidecars do (its bpf-lb-sock-hostns-only is not true): "
            "routes, balancing and retries have no effect in captured pods",
        ),
        (
            lambda api: api.documents.update(CILIUM),
            "warning settings of the network plugin: Cilium has no ConfigMap cilium-config in namespace "
            "kube-system",
        ),
        (
            calico("crd.projectcalico.org/v1", bpfEnabled=True),
            "failed Calico chooses pods before sidecars do (bpfConnectTimeLoadBalancing: TCP): "
            "routes, balancing and retries have no effect in captured pods",
        ),
        (
            calico("projectcalico.org/v3", bpfEnabled=True, bpfConnectTimeLoadBalancing="Enabled"),
            "failed Calico chooses pods before sidecars do (bpfConnectTimeLoadBalancing: Enabled): "
            "routes, balancing and retries have no effect in captured pods",
        ),
    ],
)
def test_a_network_plugin_that_chooses_pods_is_said(served: Served, change: Change, expected: str) -> None:
    [fact] = served.facts(network_facts.plugin, change)
    assert f"{fact.state.value} {fact.text}" == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda api: None,
            "no network plugin chooses pods before sidecars do (Cilium, Calico)",
        ),
        (
            cilium(**{"kube-proxy-replacement": "false", "bpf-lb-sock": "false"}),
            "Cilium leaves connections to pods (no socket load balancing)",
        ),
        (
            cilium(**{"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}),
            "Cilium leaves connections to pods (bpf-lb-sock-hostns-only)",
        ),
        (
            calico("crd.projectcalico.org/v1", bpfEnabled=False),
            "Calico leaves connections to pods (no eBPF data plane)",
        ),
        (
            calico("crd.projectcalico.org/v1", bpfEnabled=True, bpfConnectTimeLoadBalancing="Disabled"),
            "Calico leaves connections to pods (bpfConnectTimeLoadBalancing: Disabled)",
        ),
        (
            calico("crd.projectcalico.org/v1", bpfEnabled=True, bpfConnectTimeLoadBalancingEnabled=False),
            "Calico leaves connections to pods (bpfConnectTimeLoadBalancing: Disabled)",
        ),
    ],
)
def test_a_network_plugin_that_leaves_connections_to_pods_is_said(
    served: Served, change: Change, expected: str
) -> None:
    [fact] = served.facts(network_facts.plugin, change)
    assert (fact.state.value, fact.text) == ("ok", expected)


def test_settings_of_the_network_plugin_that_may_not_be_read_are_no_failure(served: Served) -> None:
    def change(api: KubeApi) -> None:
        cilium()(api)
        api.answer(403, path="/configmaps/cilium-config")

    [fact] = served.facts(network_facts.plugin, change)
    assert (fact.state.value, fact.text) == (
        "warning",
        "settings of the network plugin: you may not get configmaps in namespace kube-system: "
        "as the test wants it",
    )
    assert " --resource=configmaps --resource-name=cilium-config && " in fact.hint
