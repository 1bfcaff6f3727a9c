"""What `pilotfish check` says to do is a command for the very thing that is wrong."""

from __future__ import annotations

import pytest

from pilotfish.operator import cluster_facts, control_plane_facts, injection_facts, sidecar_facts
from pilotfish.operator.check import Look
from tests.support.manifests import ROOT
from tests.support.operator_changes import PROBLEM, Change, certificates, hook, pages, replaced
from tests.support.operator_cluster import client, issued, not_pulled, page
from tests.support.served_cluster import Served

LOGS = "kubectl -n pilotfish-system logs -l app.kubernetes.io/name=pilotfish-control-plane --prefix --tail=-1"


@pytest.mark.parametrize(
    ("one", "change", "hint"),
    [
        (
            control_plane_facts.deployment,
            replaced(
                "Deployment",
                "pilotfish-control-plane",
                spec={"replicas": 1},
                status={"readyReplicas": 1, "updatedReplicas": 1},
            ),
            "kubectl -n pilotfish-system scale deployment pilotfish-control-plane --replicas=2",
        ),
        (
            control_plane_facts.replicas,
            lambda api: api.answer(500, path="/cp-a:15014/proxy/status.json"),
            "is a NetworkPolicy or a firewall between them?",
        ),
        (
            control_plane_facts.replicas,
            pages([]),
            "kubectl -n pilotfish-system logs cp-a",
        ),
        (
            control_plane_facts.one_version,
            pages(page(version="7.1.0"), page(version="7.1.0")),
            "take that of the control plane's version: pip install . from a clone of it",
        ),
        (
            control_plane_facts.configuration,
            pages(page(problems=[{"severity": "error", **PROBLEM}])),
            "all: kubectl -n pilotfish-system port-forward deployment/pilotfish-control-plane 15014, "
            "and http://127.0.0.1:15014",
        ),
        (
            injection_facts.webhook,
            hook(clientConfig={}),
            f"the control plane sets it within a minute; else {LOGS}",
        ),
        (
            sidecar_facts.ready,
            lambda api: api.put(not_pulled("users-1")),
            "pilotfish status says what they wait for; kubectl -n shop describe pod users-1; "
            "kubectl -n shop logs users-1 -c pilotfish-sidecar",
        ),
        (sidecar_facts.identities, pages(certificates(refused=2)), f"{LOGS} | grep 'certificate refused'"),
        (
            sidecar_facts.identities,
            lambda api: pages(page(client("users-1"), issued=(issued(minutes=10, seconds=30),)))(api),
            "pilotfish proxy-config users-1.shop certs shows the last error",
        ),
        (
            sidecar_facts.versions,
            pages(page(client("users-1", version="0.3.0"), version="0.1.0"), page(version="0.1.0")),
            "restart what made these pods, in each of their namespaces: "
            "kubectl -n shop rollout restart deployment",
        ),
    ],
)
def test_a_hint_is_what_to_do_about_this_one(served: Served, one: Look, change: Change, hint: str) -> None:
    [fact] = [fact for fact in served.facts(one, change) if fact.state.value != "ok"]
    assert fact.hint == hint


def test_the_command_that_installs_gateway_api_is_that_of_the_page(served: Served) -> None:
    [fact] = served.facts(
        cluster_facts.gateway_definitions,
        lambda api: api.documents.pop("/apis/gateway.networking.k8s.io/v1"),
    )
    assert f"    {fact.hint}\n" in (ROOT / "docs/kubernetes.md").read_text()


def test_a_certificate_that_has_ended_is_said_so(served: Served) -> None:
    ended = issued(hours=-2, minutes=-1)
    found = served.facts(sidecar_facts.identities, pages(page(client("users-1"), issued=(ended,))))
    assert [fact.text for fact in found if fact.state.value != "ok"] == [
        "certificates that were not renewed: 1 of 1: shop/users-1 (shop/users-1: ended 2h ago)"
    ]
