"""The rights that the operator's commands need: what the manifests say, what `check` looks for, and what is
asked of an API server are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from pilotfish.cli import run as pilotfish
from pilotfish.operator import rights_facts, route_facts
from pilotfish.operator.rights_facts import CLUSTER_RULES, INSTALLING, READING, SYSTEM_RULES
from tests.support.kube_api import PLURALS, KubeApi, Object
from tests.support.manifests import ROOT, documents
from tests.support.operator_cluster import SYSTEM, install
from tests.support.rights import Right, asked, granted
from tests.support.served_cluster import Served

COMMANDS = (["check"], ["check", "--pre"], ["status"], ["proxy-config", "users-1.shop", "certs"])
ROLE = documents((ROOT / "deploy/k8s/operator/clusterrole.yaml").read_text())
NOT_OF_CHECK = {
    ("", "", "get", "pods"),  # proxy-config
    # Without these something is not known, and nothing fails:
    ("", "", "list", "nodes"),
    ("", "coordination.k8s.io", "list", "leases"),
    ("", "", "get", "configmaps"),
    ("", "crd.projectcalico.org", "get", "felixconfigurations"),
    ("", "projectcalico.org", "get", "felixconfigurations"),
}


def test_the_commands_have_the_rights_that_they_use_and_no_others(tmp_path: Path) -> None:
    used: set[Right] = set()

    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(tmp_path) as api:
            install(api)
            api.documents["/apis/cilium.io/v2"] = {}
            kubeconfig = f"--kubeconfig={api.kubeconfig()}"
            for calico in ("projectcalico.org/v3", "crd.projectcalico.org/v1"):
                api.documents[f"/apis/{calico}"] = {"resources": [{"name": "felixconfigurations"}]}
                for command in COMMANDS:
                    await asyncio.to_thread(pilotfish, [*command, kubeconfig])
            rights = granted(ROLE)
            for request in api.requests:
                found = asked(request)
                if found is None or request.method == "POST":
                    continue  # reviews and dry runs
                right, name = found
                assert right in rights, f"{request.method} {request.path} is not allowed"
                names = rights[right]
                assert names is None or name in names, f"{request.method} {request.path} is not allowed"
                used.add(right)

    asyncio.run(main())
    assert used == set(granted(ROLE))


def test_check_looks_for_the_rights_of_the_role() -> None:
    looked_for = {
        ("", right.kind.group, right.verb, "/".join(filter(None, (right.kind.plural, right.sub))))
        for right in READING
    }
    assert looked_for == set(granted(ROLE)) - NOT_OF_CHECK


def test_check_looks_for_the_rights_that_an_installation_needs() -> None:
    files = [path for path in (ROOT / "deploy/k8s/base").rglob("*.yaml") if path.stem != "kustomization"]
    kinds = {
        (item["metadata"].get("namespace", ""), item["apiVersion"].rpartition("/")[0], PLURALS[item["kind"]])
        for path in files
        for item in documents(path.read_text())
    }
    needed = {(*kind, verb) for kind in kinds for verb in ("get", "create", "patch")}
    namespaces = {"system": SYSTEM, "": ""}
    looked_for = {(namespaces[r.namespaces], r.kind.group, r.kind.plural, r.verb) for r in INSTALLING}
    assert looked_for == needed


def test_check_tries_the_roles_that_an_installation_makes() -> None:
    found = documents((ROOT / "deploy/k8s/base/rbac.yaml").read_text())
    rules = {item["kind"]: item["rules"] for item in found if "rules" in item}
    assert rules == {"ClusterRole": list(CLUSTER_RULES), "Role": list(SYSTEM_RULES)}


def denied(*rights: tuple[str, str]) -> Callable[[KubeApi], object]:
    return lambda api: api.denied.update(rights)


def test_one_missing_right_comes_with_the_command_that_gives_it(served: Served) -> None:
    [fact] = served.facts(rights_facts.reading, denied(("list", "endpointslices")))
    assert fact.text == (
        "you may not read what this command looks at: "
        f"no right to list endpointslices.discovery.k8s.io in {SYSTEM}"
    )
    assert fact.hint == (
        f"kubectl create role pilotfish-list-endpointslices --namespace={SYSTEM} --verb=list "
        "--resource=endpointslices.discovery.k8s.io && "
        f"kubectl create rolebinding pilotfish-list-endpointslices --namespace={SYSTEM} "
        "--role=pilotfish-list-endpointslices --user=NAME  (kubectl auth whoami)"
    )


def test_several_missing_rights_come_with_the_role_that_has_them_all(served: Served) -> None:
    [fact] = served.facts(rights_facts.reading, denied(("list", "pods"), ("list", "namespaces")))
    assert fact.text.endswith(": no right to list pods in all namespaces, list namespaces")
    assert fact.hint.startswith("kubectl apply -f deploy/k8s/operator/clusterrole.yaml && ")


def test_a_kind_that_the_cluster_does_not_have_is_neither_a_right_nor_asked_for(served: Served) -> None:
    """kubectl would refuse to make a role with it, and the API server would refuse a list of it with 403."""

    def change(api: KubeApi) -> None:
        resources = [{"name": "httproutes"}, {"name": "grpcroutes"}]
        api.documents["/apis/gateway.networking.k8s.io/v1"] = {"resources": resources}
        api.denied.add(("list", "tcproutes"))
        api.answer(403, path="/tcproutes")

    for one in (rights_facts.reading, route_facts.routes):
        assert [fact.state.value for fact in served.facts(one, change)] == ["ok"]


def test_every_right_that_an_installation_lacks_is_named(served: Served) -> None:
    [fact] = served.facts(
        rights_facts.installing, denied(("get", "networkpolicies"), ("patch", "clusterroles"))
    )
    assert fact.text == (
        "you may not install the mesh: no right to patch clusterroles.rbac.authorization.k8s.io, "
        f"get networkpolicies.networking.k8s.io in {SYSTEM}"
    )
    assert fact.hint.startswith("somebody with the role cluster-admin installs, or gives it to you: ")


LACKING = """user "me" (groups=["ops"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}
{APIGroups:[""], Resources:["secrets"], Verbs:["create"]}"""


def refusing(kind: str, message: str, status: int = 403) -> Callable[[KubeApi], object]:
    """Dry runs of one kind of roles."""

    def admit(item: Object) -> Object | web.Response:
        if item["kind"] != kind:
            return item
        return web.json_response({"kind": "Status", "code": status, "message": message}, status=status)

    return lambda api: setattr(api, "admit", admit)


@pytest.mark.parametrize("kind", ["ClusterRole", "Role"])
def test_nobody_can_give_rights_that_he_lacks(served: Served, kind: str) -> None:
    message = f"{kind.lower()}s.rbac.authorization.k8s.io is forbidden: {LACKING}"
    [fact] = served.facts(rights_facts.granting, refusing(kind, message))
    assert (fact.state.value, fact.text) == (
        "failed",
        "you may not give the control plane rights that you lack yourself (dry run): "
        '{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}, '
        '{APIGroups:[""], Resources:["secrets"], Verbs:["create"]}',
    )


def test_rights_in_a_namespace_that_is_not_there_are_tried_everywhere(served: Served) -> None:
    tried: list[Object] = []

    def change(api: KubeApi) -> None:
        api.delete("Namespace", SYSTEM, "")
        api.admit = lambda item: tried.append(item) or item

    [fact] = served.facts(rights_facts.granting, change)
    assert (fact.state.value, fact.text) == ("ok", "you may give the control plane its rights")
    assert [(item["kind"], item["rules"]) for item in tried] == [
        ("ClusterRole", list(CLUSTER_RULES)),
        ("ClusterRole", list(SYSTEM_RULES)),
    ]


def test_whoever_may_make_any_role_may_still_not_bind_it(served: Served) -> None:
    [fact] = served.facts(rights_facts.granting, denied(("bind", "clusterroles")))
    assert (fact.state.value, fact.text) == (
        "warning",
        "you may make any role (escalate), but bind none (bind) whose rights you lack yourself",
    )
    [fact] = served.facts(
        rights_facts.granting, denied(("bind", "clusterroles"), ("escalate", "clusterroles"))
    )
    assert fact.state.value == "ok"


def test_roles_that_may_not_be_made_at_all_are_said_once(served: Served) -> None:
    message = 'clusterroles is forbidden: User "me" cannot create resource "clusterroles"'
    assert served.facts(rights_facts.granting, refusing("ClusterRole", message)) == []


def test_what_else_the_cluster_says_to_roles_is_passed_on(served: Served) -> None:
    message = 'admission webhook "policy" denied the request: no'
    [fact] = served.facts(rights_facts.granting, refusing("Role", message, 400))
    assert (fact.state.value, fact.text) == (
        "warning",
        "a dry run of the control plane's roles was answered with 400: "
        'admission webhook "policy" denied the request: no',
    )
