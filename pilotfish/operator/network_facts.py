"""Facts about the network plugin: does it leave it to a pod where its connections go.

Called by `check`, also before there is a mesh. Cilium and Calico can put the address of a pod in place of a
Service's when the application connects, before anything is redirected to the sidecar. Reads their settings;
other plugins choose outside of the caller's network namespace, and so behind its sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator

from pilotfish.operator.facts import Fact, failed, ok, warning
from pilotfish.operator.kinds import CONFIG_MAPS, FELIX_CONFIGURATIONS
from pilotfish.operator.world import World

_NAME = "network-plugin"
_LINK = "docs/capture.md#network-plugins-that-choose-the-pod-themselves"
_EFFECT = "routes, balancing and retries have no effect in captured pods"


def plugin(world: World) -> Iterator[Fact]:
    found = [*_cilium(world), *_calico(world)]
    yield from found or [ok(_NAME, "no network plugin chooses pods before sidecars do (Cilium, Calico)")]


def _cilium(world: World) -> Iterator[Fact]:
    if world.group("cilium.io", "v2") is None:
        return
    found = world.one(CONFIG_MAPS, "kube-system", "cilium-config")
    if found is None:
        yield warning(
            _NAME,
            "settings of the network plugin: Cilium has no ConfigMap cilium-config in namespace kube-system",
            "kubectl get configmaps -A | grep cilium-config: with kube-proxy-replacement or bpf-lb-sock "
            'it needs bpf-lb-sock-hostns-only: "true"',
            _LINK,
        )
        return
    settings = found.get("data") or {}
    replaces_kube_proxy = settings.get("kube-proxy-replacement") in ("true", "strict")
    if not replaces_kube_proxy and settings.get("bpf-lb-sock") != "true":
        yield ok(_NAME, "Cilium leaves connections to pods (no socket load balancing)")
    elif settings.get("bpf-lb-sock-hostns-only") == "true":
        yield ok(_NAME, "Cilium leaves connections to pods (bpf-lb-sock-hostns-only)")
    else:
        yield failed(
            _NAME,
            f"Cilium chooses pods before sidecars do (its bpf-lb-sock-hostns-only is not true): {_EFFECT}",
            "Helm value socketLB.hostNamespaceOnly=true, and a restart of DaemonSet cilium in kube-system",
            _LINK,
        )


def _calico(world: World) -> Iterator[Fact]:
    for kind in FELIX_CONFIGURATIONS:
        if world.serves(kind):
            found = world.one(kind, "", "default") or {}
            break
    else:
        return
    spec = found.get("spec") or {}
    # The older setting counts where there is not the newer one, whose default is TCP.
    older = "TCP" if spec.get("bpfConnectTimeLoadBalancingEnabled", True) else "Disabled"
    chooses = str(spec.get("bpfConnectTimeLoadBalancing") or older)
    if not spec.get("bpfEnabled"):
        yield ok(_NAME, "Calico leaves connections to pods (no eBPF data plane)")
    elif chooses.lower() == "disabled":
        yield ok(_NAME, "Calico leaves connections to pods (bpfConnectTimeLoadBalancing: Disabled)")
    else:
        yield failed(
            _NAME,
            f"Calico chooses pods before sidecars do (bpfConnectTimeLoadBalancing: {chooses}): {_EFFECT}",
            "in FelixConfiguration default: bpfConnectTimeLoadBalancing: Disabled, and "
            "bpfHostNetworkedNATWithoutCTLB: Enabled for the nodes' own processes",
            _LINK,
        )
