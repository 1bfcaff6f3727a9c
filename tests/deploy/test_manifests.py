"""The manifests: they parse, they are valid, they fit together, and they claim no more than they need."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.cluster import Cluster
from control_plane.injector.patch import inject
from control_plane.injector.service import SERVICE, webhook_name
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.injector.webhook import PATH, WebhookCounts
from control_plane.leader import NAME as LEASE
from control_plane.settings import parse_arguments
from control_plane.sources.kubernetes import ClusterState
from control_plane.xds.types import METRIC_LABELS
from mesh_api.names import STATUS_PORT, XDS_PORT
from sidecar.telemetry.metrics import Metrics
from tests.support.manifests import (
    GATEWAY_API,
    KUSTOMIZATIONS,
    ROOT,
    VERSIONS,
    build,
    can_build,
    check_gateway_schema,
    check_schema,
    documents,
    kustomization_files,
    manifest_files,
    one,
    pod_specs,
)
from tests.support.xds_source import Plane

BASE = ROOT / "deploy/k8s/base"
MONITORING = ROOT / "deploy/k8s/components/monitoring"

needs_kustomize = pytest.mark.skipif(not can_build(), reason="needs kubectl or kustomize")
needs_gateway_api = pytest.mark.skipif(
    not GATEWAY_API.is_dir(), reason=f"Gateway API's definitions are not at {GATEWAY_API}"
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def base_objects(name: str) -> list[dict[str, Any]]:
    return documents((BASE / name).read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", manifest_files(), ids=relative)
def test_every_manifest_is_valid(path: Path, version: str) -> None:
    found = documents(path.read_text())
    assert found
    for item in found:
        check_schema(item, version)


@needs_gateway_api
@pytest.mark.parametrize("path", manifest_files(), ids=relative)
def test_every_route_is_valid(path: Path) -> None:
    for item in documents(path.read_text()):
        if "gateway.networking.k8s.io" in item["apiVersion"]:
            check_gateway_schema(item)


@pytest.mark.parametrize("path", kustomization_files(), ids=relative)
def test_every_kustomization_names_what_is_there(path: Path) -> None:
    kustomization = yaml.safe_load(path.read_text())
    generated = [name for made in kustomization.get("configMapGenerator") or [] for name in made["files"]]
    patches = [patch["path"] for patch in kustomization.get("patches") or [] if "path" in patch]
    for name in (*kustomization.get("resources", []), *generated, *patches):
        assert (path.parent / name).exists(), name
    for name in (*kustomization.get("components", []),):
        component = yaml.safe_load((path.parent / name / "kustomization.yaml").read_text())
        assert component["kind"] == "Component"


@pytest.mark.parametrize(
    "folder", ["deploy/k8s/base", "deploy/k8s/base/crds", "deploy/k8s/components/tracing"]
)
def test_every_file_of_a_kustomization_is_named(folder: str) -> None:
    kustomization = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())
    there = {path.name for path in (ROOT / folder).iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there


@needs_kustomize
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_kustomization_builds_valid_objects(kustomization: str, version: str) -> None:
    for item in build(kustomization):
        check_schema(item, version)


@needs_kustomize
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_image_has_a_version(kustomization: str) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for item in build(kustomization):
        for spec in pod_specs(item):
            for container in (*spec["containers"], *spec.get("initContainers", ())):
                name, _, tag = container["image"].rpartition(":")
                assert name, container["image"]
                assert tag == version[1] or not name.startswith("pilotfish"), container["image"]


def test_every_image_can_be_built_and_named() -> None:
    makefile = (ROOT / "Makefile").read_text()
    made = re.search(r"^IMAGES := (.+)$", makefile, re.MULTILINE)
    assert made is not None
    images = set(made[1].split())
    assert images == {path.stem for path in (ROOT / "deploy/images").glob("*.Dockerfile")}
    component = yaml.safe_load((ROOT / "deploy/k8s/components/images/kustomization.yaml").read_text())
    assert sorted(image["name"] for image in component["images"]) == sorted(
        f"pilotfish-{name}" for name in images
    )


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/images").glob("*.Dockerfile")), ids=relative)
def test_every_dockerfile_copies_what_is_there(path: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), re.MULTILINE)
    assert copied
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/images").glob("*.Dockerfile")), ids=relative)
def test_every_image_is_small_and_says_who_runs_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(
        "ARG PYTHON=python:3.12-slim-bookworm\n"
    )  # what the rules of capture are tested with
    final = text.rpartition("FROM ${PYTHON}\n")[2]
    # The kubelet can hold `runAsNonRoot` only against a number.
    assert re.search(r"^USER (\d+):\1$", final, re.MULTILINE)
    # Files straight from the clone may be readable by their owner alone.
    assert set(re.findall(r"^COPY (\S+)", final, re.MULTILINE)) == {"--from=build"}
    assert "pip" not in final


@needs_kustomize
@pytest.mark.parametrize("kustomization", [name for name in KUSTOMIZATIONS if name != "examples/shop"])
def test_the_injector_is_told_the_images_that_the_setting_names(kustomization: str) -> None:
    deployment = one(build(kustomization), "Deployment", "pilotfish-control-plane")
    spec = deployment["spec"]["template"]["spec"]
    environment = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    sidecar, init = spec["initContainers"]
    assert environment["SIDECAR_IMAGE"] == sidecar["image"]
    assert environment["SIDECAR_IMAGE"].startswith("pilotfish-sidecar:")
    assert environment["INIT_IMAGE"] == init["image"]
    assert environment["INIT_IMAGE"].startswith("pilotfish-init:")


@needs_kustomize
def test_an_overlay_with_images_of_its_own_tells_the_injector_as_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy/k8s", tmp_path / "k8s")
    component = tmp_path / "k8s/components/sidecar-image/kustomization.yaml"
    overlay = {
        "resources": ["../production"],
        "images": [{"name": "pilotfish-sidecar", "newName": "registry.example.com/sidecar", "newTag": "2"}],
        "replacements": yaml.safe_load(component.read_text())["replacements"],
    }
    folder = tmp_path / "k8s/overlays/own"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    # `build` joins the path to the repository's, and an absolute path stays what it is.
    deployment = one(build(str(folder)), "Deployment", "pilotfish-control-plane")
    spec = deployment["spec"]["template"]["spec"]
    assert spec["initContainers"][0]["image"] == "registry.example.com/sidecar:2"
    environment = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert environment["SIDECAR_IMAGE"] == "registry.example.com/sidecar:2"


@needs_kustomize
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_pod_fits_the_restricted_standard(kustomization: str) -> None:
    for item in build(kustomization):
        for spec in pod_specs(item):
            if item["metadata"]["namespace"] == "pilotfish-system":
                assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
            context = spec["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in (*spec["containers"], *spec.get("initContainers", ())):
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False
                assert own["readOnlyRootFilesystem"] is True
                assert own["capabilities"] == {"drop": ["ALL"]}
                assert set(container["resources"]["requests"]) == {"cpu", "memory"}
                assert "memory" in container["resources"]["limits"]


@needs_kustomize
@pytest.mark.parametrize("kustomization", [name for name in KUSTOMIZATIONS if name != "examples/shop"])
def test_the_control_plane_understands_its_arguments(kustomization: str) -> None:
    deployment = one(build(kustomization), "Deployment", "pilotfish-control-plane")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    values = {"POD_NAMESPACE": "pilotfish-system", "SIDECAR_IMAGE": "sidecar:1", "INIT_IMAGE": "init:1"}
    values["CLUSTER_DOMAIN"] = next(e["value"] for e in container["env"] if e["name"] == "CLUSTER_DOMAIN")
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], text) for text in container["args"][1:]
    ]
    settings = parse_arguments(arguments)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.kubernetes
    assert settings.listen == f"*:{ports['xds']}"
    assert settings.status == f"*:{ports['status']}"
    assert settings.injector == f"*:{ports['webhook']}"
    assert (ports["xds"], ports["status"]) == (XDS_PORT, STATUS_PORT)
    assert (settings.init_image, settings.capture) == ("init:1", True)
    # The name by which sidecars call is in the certificate.
    called = settings.sidecar_control_plane.rpartition(":")[0]
    assert {called, f"{called}.{settings.cluster_domain}"} <= set(settings.server_names)
    # Who is told to send spans has somewhere to send them.
    assert bool(settings.tracing_cluster) == bool(settings.sidecar_otlp)


def test_a_replica_answers_until_nobody_calls_it_any_more() -> None:
    """A refused call of the webhook lets a pod start without its sidecar, where the policy is Ignore."""
    [deployment] = base_objects("control-plane.yaml")
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    [sleep, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert 5 <= int(seconds) < spec["terminationGracePeriodSeconds"] - 10


def test_services_lead_to_ports_that_exist() -> None:
    [deployment] = base_objects("control-plane.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for service in base_objects("services.yaml"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_webhook_is_where_its_configuration_says() -> None:
    [configuration] = base_objects("webhook.yaml")
    [webhook] = configuration["webhooks"]
    service = webhook["clientConfig"]["service"]
    assert (service["name"], service["path"]) == (SERVICE, PATH)
    assert webhook_name(service["namespace"]) == "pilotfish-injector.pilotfish-system.svc"
    assert webhook["failurePolicy"] == "Ignore"
    # The API server shows it a pod again that later webhooks have changed.
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    selector = webhook["namespaceSelector"]
    assert selector["matchLabels"] == {"mesh.pilotfish.dev/inject": "enabled"}
    # Labelled by mistake, these would wait for a webhook that waits for them.
    [never] = selector["matchExpressions"]
    assert (never["key"], never["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
    assert set(never["values"]) == {service["namespace"], "kube-system"}


def test_every_port_of_the_control_plane_is_open_to_the_api_server() -> None:
    """It calls from addresses that no selector names: the webhook, and `pods/proxy` of the status page."""
    [deployment] = base_objects("control-plane.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [policy] = base_objects("network-policy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    [rule] = policy["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == {port["name"] for port in container["ports"]}
    assert "from" not in rule


@needs_kustomize
@pytest.mark.parametrize("kustomization", [name for name in KUSTOMIZATIONS if name != "examples/shop"])
def test_the_control_plane_starts_with_as_many_replicas_as_the_autoscaler_keeps(kustomization: str) -> None:
    objects = build(kustomization)
    least = {"deploy/k8s/overlays/production": 3}.get(kustomization, 2)
    scaled = one(objects, "HorizontalPodAutoscaler", "pilotfish-control-plane")["spec"]
    assert scaled["minReplicas"] == least
    target = one(objects, scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"])
    assert target["spec"]["replicas"] == least


@needs_kustomize
def test_what_pods_wait_for_is_scheduled_before_them() -> None:
    objects = build("deploy/k8s/overlays/production")
    [webhook] = one(objects, "MutatingWebhookConfiguration", "pilotfish-injector")["webhooks"]
    assert webhook["failurePolicy"] == "Fail"
    deployment = one(objects, "Deployment", "pilotfish-control-plane")
    name = deployment["spec"]["template"]["spec"]["priorityClassName"]
    assert one(objects, "PriorityClass", name)["value"] == 1_000_000_000


@needs_kustomize
@pytest.mark.parametrize("kustomization", ["examples/shop", "deploy/k8s/overlays/demo"])
def test_the_shop_is_captured_also_where_the_cluster_enforces_a_stricter_standard(kustomization: str) -> None:
    shop = one(build(kustomization), "Namespace", "shop")["metadata"]
    assert shop["labels"].items() >= {
        ("mesh.pilotfish.dev/inject", "enabled"),
        ("pod-security.kubernetes.io/enforce", "privileged"),
    }
    settings = InjectionSettings(image="sidecar:1", init_image="init:1")
    injection = inject({}, {"containers": [{"name": "app"}]}, settings, shop)
    assert injection.spec["initContainers"][0]["name"] == "pilotfish-init"


@needs_kustomize
def test_the_demo_makes_no_pod_of_the_shop_before_the_webhook_is_configured() -> None:
    kinds = [(item["kind"], item["metadata"].get("namespace")) for item in build("deploy/k8s/overlays/demo")]
    webhook = kinds.index(("MutatingWebhookConfiguration", None))
    assert webhook < kinds.index(("Deployment", "shop"))
    # What is in a namespace comes after it.
    assert kinds[0] == ("Namespace", None)


def test_the_control_plane_may_read_exactly_what_it_watches_and_no_secrets() -> None:
    [rules] = [item["rules"] for item in base_objects("rbac.yaml") if item["kind"] == "ClusterRole"]

    def allowed(verb: str) -> set[tuple[str, str]]:
        return {
            (group, resource)
            for rule in rules
            if verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    watched = {
        (store.resource.versions[0].rpartition("/")[0], store.resource.plural)
        for store in ClusterState(lambda: None).stores
    }
    assert allowed("list") == allowed("watch") == watched
    webhooks = ("admissionregistration.k8s.io", "mutatingwebhookconfigurations")
    assert allowed("get") == {("", "namespaces"), webhooks}
    judged = {
        (group, f"{plural}/status") for group, plural in watched if plural.endswith(("routes", "policies"))
    }
    assert allowed("patch") == {*judged, webhooks}
    for rule in rules:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"secrets", "configmaps"} & set(rule["resources"])


def test_those_who_may_edit_a_namespace_may_write_our_policies_and_not_their_status() -> None:
    defined = {
        (item["spec"]["group"], item["spec"]["names"]["plural"])
        for path in (BASE / "crds").glob("*.yaml")
        for item in documents(path.read_text())
        if item["kind"] == "CustomResourceDefinition"
    }
    verbs = {}
    for role in base_objects("user-roles.yaml"):
        [(label, value)] = role["metadata"]["labels"].items()
        assert value == "true"
        [rule] = role["rules"]
        assert {(group, name) for group in rule["apiGroups"] for name in rule["resources"]} == defined
        verbs[label] = set(rule["verbs"])
    # What may be viewed may be viewed by editors too: the cluster adds view to edit, and edit to admin.
    prefix = "rbac.authorization.k8s.io/aggregate-to"
    assert verbs == {
        f"{prefix}-view": {"get", "list", "watch"},
        f"{prefix}-edit": {"create", "delete", "deletecollection", "patch", "update"},
    }


def test_what_is_written_in_the_own_namespace_is_named() -> None:
    [rules] = [item["rules"] for item in base_objects("rbac.yaml") if item["kind"] == "Role"]
    named = {
        (resource, name)
        for rule in rules
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        if rule["verbs"] != ["create"]
    }
    assert named == {("secrets", "pilotfish-ca"), ("configmaps", "pilotfish-root"), ("leases", LEASE)}
    assert Cluster.__doc__


def known_metrics() -> set[str]:
    process = (ROOT / "sidecar/telemetry/process.py").read_text()
    of_control_plane = re.findall(
        r'\b(?:one|add)\(\s*"([a-z_]+)"', (ROOT / "control_plane/status_metrics.py").read_text()
    )
    return {
        *re.findall(r"^# TYPE (\S+)", Metrics().prometheus_text(), re.MULTILINE),
        *re.findall(r'"((?:process|pilotfish)_[a-z_]+)"', process),
        *(f"pilotfish_control_plane_{name}" for name in of_control_plane),
        "up",
    }


def used_metrics(text: str) -> set[str]:
    found = re.findall(r"\b(?:pilotfish|process)_[a-z_]+", text)
    return {re.sub(r"_bucket$", "", name) for name in found}


def test_alerts_ask_for_metrics_that_exist() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(expressions) >= 8
    used = set().union(*map(used_metrics, expressions))
    assert len(used) >= 7
    assert used <= known_metrics()


def test_what_alerts_look_for_the_increase_of_is_there_before_it_increases(tmp_path: Path) -> None:
    """To Prometheus, a series that begins with its first event has no increase. Requests only divide."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    text = "".join(rule["expr"] for group in groups for rule in group["rules"])
    looked_at = set(re.findall(r"\b(?:increase|rate)\((\w+)", text)) - {"pilotfish_requests_total"}
    assert len(looked_at) == 5

    async def of_control_plane() -> str:
        async with Plane(tmp_path) as plane:
            plane.app.webhook_counts = WebhookCounts
            return (await plane.get("/metrics"))[1]

    sidecar = Metrics()
    sidecar.route("outbound", "shop/users/0", "users", "")
    sidecar.listener("inbound", "in")
    exposed = sidecar.prometheus_text() + asyncio.run(of_control_plane())
    zeros = Counter(re.findall(r"^(\w+)(?:\{[^}]*\})? 0$", exposed, re.MULTILINE))
    assert looked_at <= set(zeros)
    assert zeros["pilotfish_control_plane_nacks_total"] == len(METRIC_LABELS) == 6


def selected_labels(text: str) -> set[str]:
    """Names of labels in selectors and groupings."""
    inside = [*re.findall(r"\{([^}]*)\}", text), *re.findall(r"\bby \(([^)]*)\)", text)]
    return {
        name
        for part in inside
        for name in re.findall(r"(\w+)(?=\s*(?:=|!|,|$))", re.sub(r'"[^"]*"', "", part))
    }


def test_alerts_and_dashboards_ask_for_labels_that_exist() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    panels = json.loads((MONITORING / "pilotfish.json").read_text())["panels"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    from_scraping = {
        rule["target_label"] for job in jobs for rule in job["relabel_configs"] if "target_label" in rule
    }
    of_metrics = {"direction", "route", "cluster", "le", "severity", "type", "outcome"}
    files = (
        "sidecar/telemetry/metrics.py",
        "sidecar/telemetry/prometheus.py",
        "control_plane/status_metrics.py",
    )
    sources = "".join((ROOT / file).read_text() for file in files)
    assert not [name for name in of_metrics if not re.search(rf"\b{name}\b", sources)]
    used = set().union(*map(selected_labels, expressions))
    assert {"outcome", "namespace", "job", "le"} <= used <= of_metrics | from_scraping | {"job"}


def test_dashboards_ask_for_metrics_that_exist() -> None:
    dashboard = json.loads((MONITORING / "pilotfish.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set().union(*map(used_metrics, expressions))
    assert len(used) >= 10
    assert used <= known_metrics()


def scraped(job: str, **labels: str) -> bool:
    """Whether Prometheus keeps a target with these `__meta_kubernetes_pod_` labels."""
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    [rules] = [each["relabel_configs"] for each in jobs if each["job_name"] == job]
    for rule in rules:
        names = [name.removeprefix("__meta_kubernetes_pod_") for name in rule["source_labels"]]
        value = ";".join(labels.get(name, "") for name in names)
        fits = re.fullmatch(rule.get("regex", "(.*)"), value) is not None
        if rule.get("action") == ("drop" if fits else "keep"):
            return False
    return True


TARGETS = {
    "pilotfish-sidecars": {
        "label_mesh_pilotfish_dev_injected": "true",
        "container_port_name": "mesh-admin",
    },
    "pilotfish-control-plane": {
        "label_app_kubernetes_io_name": "pilotfish-control-plane",
        "container_port_name": "status",
    },
}


@pytest.mark.parametrize("job", TARGETS)
def test_prometheus_finds_the_ports_that_pods_name(job: str) -> None:
    assert scraped(job, **TARGETS[job], phase="Running")
    assert not scraped(job, **TARGETS[job] | {"container_port_name": "http"}, phase="Running")


@pytest.mark.parametrize("job", TARGETS)
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_prometheus_leaves_out_finished_pods_whose_address_may_be_another_pod_s(job: str, phase: str) -> None:
    assert not scraped(job, **TARGETS[job], phase=phase)
