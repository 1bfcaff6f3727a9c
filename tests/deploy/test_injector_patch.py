"""What the injector makes of pods."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from control_plane.injector.patch import InjectionError, inject, json_patch
from control_plane.injector.quantities import buffer_mebibytes
from control_plane.injector.sidecar_container import InjectionSettings

VERSIONS = ("1.30", "1.34", "1.37")
SETTINGS = InjectionSettings(image="sidecar:1", root_pem="PEM", otlp="jaeger.tracing:4318")
MESH = "mesh.pilotfish.dev"


def spec(**more: Any) -> dict[str, Any]:
    return {"containers": [{"name": "app", "image": "app:1"}], **more}


def sidecar(annotations: dict[str, str] | None = None, settings: InjectionSettings = SETTINGS) -> Any:
    injected = inject({"annotations": annotations or {}}, spec(), settings).spec
    found = injected["initContainers"] if settings.native else injected["containers"]
    assert found[0]["name"] == "pilotfish-sidecar"
    return found[0]


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_the_sidecar_is_the_first_init_container_and_never_ends() -> None:
    injected = inject({}, spec(initContainers=[{"name": "migrate", "image": "app:1"}]), SETTINGS).spec
    assert [c["name"] for c in injected["initContainers"]] == ["pilotfish-sidecar", "migrate"]
    assert injected["initContainers"][0]["restartPolicy"] == "Always"
    assert [c["name"] for c in injected["containers"]] == ["app"]


def test_the_application_waits_for_the_sidecar_to_be_ready() -> None:
    probe = sidecar()["startupProbe"]
    assert probe["httpGet"] == {"path": "/ready", "port": 15000, "scheme": "HTTP"}
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (1, 300)


def test_the_pod_says_that_it_was_injected() -> None:
    assert inject({"labels": {"app": "x"}}, spec(), SETTINGS).metadata == {
        "labels": {"app": "x", f"{MESH}/injected": "true"}
    }


def test_the_token_is_for_the_mesh_alone() -> None:
    volume = inject({}, spec(volumes=[{"name": "data", "emptyDir": {}}]), SETTINGS).spec["volumes"][1]
    assert volume["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "mesh-ca", "expirationSeconds": 43200, "path": "token"}}
    ]
    assert sidecar()["volumeMounts"] == [
        {"name": volume["name"], "mountPath": "/var/run/secrets/mesh", "readOnly": True}
    ]


def test_the_sidecar_knows_itself_and_the_control_plane_from_its_environment() -> None:
    assert env(sidecar()) == {
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        "POD_IP": {"fieldRef": {"fieldPath": "status.podIP"}},
        "POD_SERVICE_ACCOUNT": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}},
        "PILOTFISH_CONTROL_PLANE": "pilotfish-control-plane.pilotfish-system.svc:15010",
        "PILOTFISH_TRUST_DOMAIN": "cluster.local",
        "PILOTFISH_TOKEN_FILE": "/var/run/secrets/mesh/token",
        "PILOTFISH_OTLP": "jaeger.tracing:4318",
        "PILOTFISH_TRACE_SAMPLING": "100",
        "PILOTFISH_ROOT_PEM": "PEM",
    }


def test_without_a_root_the_pod_reads_it_from_a_config_map() -> None:
    assert env(sidecar(settings=replace(SETTINGS, root_pem="")))["PILOTFISH_ROOT_PEM"] == {
        "configMapKeyRef": {"name": "pilotfish-root", "key": "root.pem"}
    }


def test_every_application_container_is_led_to_the_sidecar() -> None:
    injected = inject({}, spec(initContainers=[{"name": "migrate", "image": "x"}]), SETTINGS).spec
    for container in (injected["initContainers"][1], injected["containers"][0]):
        assert set(env(container)) == {"HTTP_PROXY", "http_proxy", "grpc_proxy", "NO_PROXY", "no_proxy"}
        assert env(container)["HTTP_PROXY"] == "http://127.0.0.1:15001"
        assert env(container)["no_proxy"].split(",")[:2] == ["localhost", "127.0.0.1"]
        assert "$(KUBERNETES_SERVICE_HOST)" in env(container)["NO_PROXY"]


def test_a_proxy_that_the_author_chose_stays_in_either_case_of_letters() -> None:
    own = {"name": "http_proxy", "value": "http://corporate:3128"}
    pod = {"containers": [{"name": "app", "image": "x", "env": [own]}]}
    container = inject({}, pod, SETTINGS).spec["containers"][0]
    assert env(container)["http_proxy"] == "http://corporate:3128"
    assert "HTTP_PROXY" not in env(container)


def test_draining_ends_before_the_grace_period() -> None:
    injected = inject({}, spec(terminationGracePeriodSeconds=60), SETTINGS).spec["initContainers"][0]
    assert injected["lifecycle"]["preStop"]["exec"]["command"] == ["pilotfish", "drain", "--deadline", "55"]
    at = injected["args"].index("--drain-deadline")
    assert injected["args"][at + 1] == "55"
    short = inject({}, spec(terminationGracePeriodSeconds=2), SETTINGS).spec["initContainers"][0]
    assert short["lifecycle"]["preStop"]["exec"]["command"][-1] == "1"


def test_annotations_tune_the_sidecar() -> None:
    tuned = sidecar(
        {
            f"{MESH}/proxy-cpu": "250m",
            f"{MESH}/proxy-memory": "512Mi",
            f"{MESH}/log-level": "debug",
            f"{MESH}/trace-sampling": "0.5",
        }
    )
    assert tuned["resources"] == {
        "requests": {"cpu": "250m", "memory": "512Mi"},
        "limits": {"memory": "512Mi"},
    }
    assert tuned["args"][-2:] == ["--log-level", "debug"]
    assert env(tuned)["PILOTFISH_TRACE_SAMPLING"] == "0.5"


@pytest.mark.parametrize(
    ("memory", "buffers"),
    [("384Mi", 144), ("1Gi", 464), ("500M", 190), ("128Mi", 16), ("1e9", 428), ("64Mi", 16), ("2E2", 16)],
)
def test_a_sidecar_buffers_less_than_it_has_memory(memory: str, buffers: int) -> None:
    assert buffer_mebibytes(memory) == buffers
    args = sidecar({f"{MESH}/proxy-memory": memory})["args"]
    assert args[args.index("--buffer-limit") + 1] == str(buffers)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("proxy-cpu", "lots"),
        ("proxy-memory", "12 Mi"),
        ("proxy-memory", ""),
        ("log-level", "loud"),
        ("trace-sampling", "101"),
        ("trace-sampling", "half"),
        ("inject", "yes"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused_by_name(knob: str, value: str) -> None:
    with pytest.raises(InjectionError, match=f"{MESH}/{knob} is {value!r}; it takes"):
        inject({"annotations": {f"{MESH}/{knob}": value}}, spec(), SETTINGS)


@pytest.mark.parametrize("where", ["labels", "annotations"])
def test_a_pod_may_stay_outside(where: str) -> None:
    metadata = {where: {f"{MESH}/inject": "disabled"}}
    injection = inject(metadata, spec(), SETTINGS)
    assert injection.skipped == f"{MESH}/inject is disabled"
    assert (injection.metadata, injection.spec) == (metadata, spec())


def test_pods_that_cannot_have_a_sidecar_are_left_alone() -> None:
    assert "hostNetwork" in inject({}, spec(hostNetwork=True), SETTINGS).skipped


def requires(*terms: list[tuple[str, str, list[str]]]) -> dict[str, Any]:
    """Required node affinity; each term: key, operator and values of its expressions."""
    selector = [
        {
            "matchExpressions": [
                {"key": key, "operator": operator, "values": values} for key, operator, values in term
            ]
        }
        for term in terms
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": selector}}
    return {"affinity": {"nodeAffinity": required}}


OS, OLD_OS, ZONE = "kubernetes.io/os", "beta.kubernetes.io/os", "topology.kubernetes.io/zone"
IN_ZONE = (ZONE, "In", ["a"])


@pytest.mark.parametrize(
    ("asked", "windows"),
    [
        ({"os": {"name": "windows"}}, True),
        ({"os": {"name": "linux"}}, False),
        ({"nodeSelector": {OS: "windows"}}, True),
        ({"nodeSelector": {OLD_OS: "windows"}}, True),
        ({"nodeSelector": {OS: "linux", ZONE: "a"}}, False),
        (requires([IN_ZONE, (OS, "In", ["windows"])]), True),
        (requires([(OLD_OS, "NotIn", ["linux"])]), True),
        (requires([(OS, "In", ["windows"])], [(OS, "In", ["windows"]), IN_ZONE]), True),
        # A node that fits one of the terms will do.
        (requires([(OS, "In", ["windows"])], [IN_ZONE]), False),
        (requires([(OS, "In", ["linux", "windows"])]), False),
        (requires([(OS, "Exists", [])]), False),
        (requires([IN_ZONE]), False),
        ({"affinity": {"podAntiAffinity": {}}}, False),
    ],
)
def test_windows_pods_are_left_alone_however_they_say_it(asked: dict[str, Any], windows: bool) -> None:
    assert inject({}, spec(**asked), SETTINGS).skipped == ("it is a Windows pod" if windows else "")


@pytest.mark.parametrize("native", [True, False])
def test_injection_twice_is_injection_once_and_changes_nothing_that_it_is_given(native: bool) -> None:
    settings = replace(SETTINGS, native=native)
    given, kept = spec(), copy.deepcopy(spec())
    first = inject({}, given, settings)
    second = inject(first.metadata, first.spec, settings)
    assert given == kept
    assert (second.metadata, second.spec) == (first.metadata, first.spec)
    assert second.skipped == "it has a sidecar"


def test_for_old_clusters_an_ordinary_container_holds_the_application_back() -> None:
    settings = replace(SETTINGS, native=False)
    injected = inject({}, spec(initContainers=[{"name": "migrate", "image": "x"}]), settings).spec
    assert [c["name"] for c in injected["containers"]] == ["pilotfish-sidecar", "app"]
    container = injected["containers"][0]
    assert "restartPolicy" not in container
    assert container["lifecycle"]["postStart"]["exec"]["command"][:2] == ["pilotfish", "wait"]
    # Init containers run before there is a proxy.
    assert "env" not in injected["initContainers"][0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("native", [True, False])
def test_the_injected_pod_is_valid(version: str, native: bool) -> None:
    injection = inject({"name": "x"}, spec(), replace(SETTINGS, native=native))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": injection.metadata, "spec": injection.spec}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("own", [{}, {"kubectl.kubernetes.io/default-container": "helper"}])
def test_kubectl_goes_to_the_application_beside_an_ordinary_sidecar(own: dict[str, str]) -> None:
    pod = spec()
    pod["containers"].append({"name": "helper", "image": "x"})
    ordinary = inject({"annotations": own}, pod, replace(SETTINGS, native=False))
    default = {"kubectl.kubernetes.io/default-container": "app"}
    assert ordinary.metadata["annotations"] == default | own
    # A native sidecar is no default.
    assert inject({"annotations": own}, pod, SETTINGS).metadata["annotations"] == own


CONTROL_PLANE, COLLECTOR = "pilotfish-control-plane.pilotfish-system.svc", "jaeger.tracing.svc.cluster.local"
KNOWN = {CONTROL_PLANE: ("10.96.0.7",), COLLECTOR: ("10.96.0.8",)}


@pytest.mark.parametrize("policy", ["Default", "None"])
def test_a_pod_with_other_name_servers_finds_what_its_sidecar_calls(policy: str) -> None:
    settings = replace(SETTINGS, otlp=f"{COLLECTOR}:4318", addresses=KNOWN)
    own = {"ip": "10.1.1.1", "hostnames": ["mine"]}
    injection = inject({}, spec(dnsPolicy=policy, hostAliases=[own]), settings)
    assert injection.spec["hostAliases"] == [
        own,
        {"ip": "10.96.0.7", "hostnames": [CONTROL_PLANE]},
        {"ip": "10.96.0.8", "hostnames": [COLLECTOR]},
    ]
    assert injection.warnings == ()
    clustered = inject({}, spec(dnsPolicy="ClusterFirst"), settings)
    assert "hostAliases" not in clustered.spec


def test_a_pod_whose_sidecar_may_not_find_the_control_plane_says_so() -> None:
    injection = inject({}, spec(dnsPolicy="None"), SETTINGS)
    assert "hostAliases" not in injection.spec
    [warning] = injection.warnings
    assert warning.startswith(
        f"pilotfish: dnsPolicy is None, and the address of {CONTROL_PLANE} is not known here: "
    )
    by_address = replace(SETTINGS, control_plane="10.96.0.7:15010")
    assert inject({}, spec(dnsPolicy="None"), by_address).warnings == ()


def test_the_patch_touches_only_what_changes() -> None:
    pod = {"metadata": {"name": "x", "labels": {"a": "b"}}, "spec": spec(restartPolicy="Never")}
    operations = json_patch(pod, inject(pod["metadata"], pod["spec"], SETTINGS))
    assert [(operation["op"], operation["path"]) for operation in operations] == [
        ("add", "/metadata/labels"),
        ("add", "/spec/containers"),
        ("add", "/spec/initContainers"),
        ("add", "/spec/volumes"),
    ]
