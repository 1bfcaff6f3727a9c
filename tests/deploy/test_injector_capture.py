"""What the injector makes of pods whose connections are captured, and of those that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from control_plane.injector.patch import Injection, InjectionError, inject
from control_plane.injector.sidecar_container import InjectionSettings

VERSIONS = ("1.30", "1.34", "1.37")
MESH = "mesh.pilotfish.dev"
SETTINGS = InjectionSettings(image="sidecar:1", init_image="init:1")
MIGRATE = {"name": "migrate", "image": "x"}


def captured(
    annotations: dict[str, str] | None = None, settings: InjectionSettings = SETTINGS, **spec: Any
) -> Injection:
    pod = {"containers": [{"name": "app", "image": "app:1"}], **spec}
    named = {f"{MESH}/{knob}": value for knob, value in (annotations or {}).items()}
    return inject({"name": "x", "annotations": named}, pod, settings)


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in container["env"]}


def test_rules_are_set_before_the_sidecar_and_the_sidecar_is_there_before_the_rest() -> None:
    spec = captured(initContainers=[MIGRATE]).spec
    assert [c["name"] for c in spec["initContainers"]] == ["pilotfish-init", "pilotfish-sidecar", "migrate"]


def test_the_init_container_has_two_capabilities_and_nothing_else() -> None:
    init = captured().spec["initContainers"][0]
    assert init["image"] == "init:1"
    assert init["args"] == ["capture", "install"]
    assert init["securityContext"]["capabilities"] == {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}
    assert init["securityContext"]["runAsUser"] == 0
    assert init["securityContext"]["readOnlyRootFilesystem"] is True
    assert init["securityContext"]["privileged"] is False
    assert "restartPolicy" not in init


@pytest.mark.parametrize("native", ["enabled", "disabled"])
def test_a_pod_can_be_guaranteed_and_pass_a_quota_of_cpu_limits(native: str) -> None:
    """Which every container must say, those that end before the application too."""
    own = {"cpu": "1", "memory": "1Gi"}
    app = {"name": "app", "image": "x", "resources": {"requests": own, "limits": own}}
    knobs = {"proxy-cpu": "100m", "proxy-cpu-limit": "100m", "proxy-memory": "256Mi"}
    spec = captured({**knobs, "native-sidecar": native}, containers=[app]).spec
    asked = {c["name"]: c["resources"] for c in (*spec["initContainers"], *spec["containers"])}
    proxy = {"cpu": "100m", "memory": "256Mi"}
    guaranteed = {"requests": proxy, "limits": proxy}
    assert asked == {
        "pilotfish-init": guaranteed,
        "pilotfish-sidecar": guaranteed,
        "app": app["resources"],
    }


SMALL = {"cpu": "200m", "memory": "256Mi"}
DEFAULT = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "384Mi"}}
ASKED = {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}


@pytest.mark.parametrize(
    ("resources", "knobs", "own", "buffers"),
    [
        ({}, {}, DEFAULT, "144"),
        ({"requests": SMALL, "limits": SMALL}, {}, {"requests": {}, "limits": {}}, "80"),
        ({"limits": SMALL}, {"proxy-memory": "64Mi"}, ASKED, "16"),
        (
            {"requests": {"cpu": "200m"}},
            {},
            {"requests": {"memory": "96Mi"}, "limits": {"memory": "384Mi"}},
            "144",
        ),
        ({"limits": {"memory": 8 << 30}}, {}, {"requests": {"cpu": "50m"}, "limits": {}}, "144"),
    ],
)
def test_a_sidecar_shares_what_the_pod_has_for_all_of_its_containers_together(
    resources: dict[str, Any], knobs: dict[str, str], own: dict[str, Any], buffers: str
) -> None:
    """The API server takes no containers that together request more, and none with a higher limit."""
    injection = captured(knobs, resources=resources)
    init, sidecar = injection.spec["initContainers"]
    assert init["resources"] == sidecar["resources"] == own
    assert sidecar["args"][sidecar["args"].index("--buffer-limit") + 1] == buffers
    assert injection.spec["resources"] == resources
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": injection.metadata, "spec": injection.spec}
    kubernetes_validate.validate(pod, "1.34", strict=True)


def test_what_is_left_out_is_told_to_the_rules() -> None:
    init = captured(
        {
            "skip-inbound-ports": "9090, 9091",
            "skip-outbound-ports": "25",
            "exclude-outbound-cidrs": "169.254.169.254",
        }
    ).spec["initContainers"][0]
    assert init["args"][2:] == [
        *("--skip-inbound-ports", "9090,9091"),
        *("--skip-outbound-ports", "25"),
        *("--exclude-cidr", "169.254.169.254"),
    ]


def test_a_captured_pod_says_so_to_the_control_plane_and_to_its_sidecar() -> None:
    injection = captured({"opaque-ports": "3306,6379"})
    assert injection.metadata["annotations"] == {
        f"{MESH}/capture": "enabled",
        f"{MESH}/inbound": "permissive",
        f"{MESH}/opaque-ports": "3306,6379",
    }
    sidecar = injection.spec["initContainers"][1]
    assert env(sidecar)["PILOTFISH_CAPTURE"] == "true"
    assert env(sidecar)["PILOTFISH_INBOUND"] == "permissive"
    strict = captured({"inbound": "strict"})
    assert strict.metadata["annotations"][f"{MESH}/inbound"] == "strict"
    assert env(strict.spec["initContainers"][1])["PILOTFISH_INBOUND"] == "strict"


def test_captured_applications_need_no_variables() -> None:
    spec = captured(initContainers=[MIGRATE]).spec
    assert spec["containers"] == [{"name": "app", "image": "app:1"}]
    assert spec["initContainers"][2] == MIGRATE


@pytest.mark.parametrize(
    ("annotations", "settings"),
    [
        ({"capture": "disabled"}, SETTINGS),
        ({}, replace(SETTINGS, capture=False)),
        ({}, replace(SETTINGS, init_image="")),
    ],
)
def test_without_capture_there_are_variables_instead_of_rules(
    annotations: dict[str, str], settings: InjectionSettings
) -> None:
    injection = captured(annotations, settings)
    assert [c["name"] for c in injection.spec["initContainers"]] == ["pilotfish-sidecar"]
    assert env(injection.spec["containers"][0])["HTTP_PROXY"] == "http://127.0.0.1:15001"
    assert "PILOTFISH_CAPTURE" not in env(injection.spec["initContainers"][0])
    assert [volume["name"] for volume in injection.spec["volumes"]] == ["pilotfish-token"]


def test_a_pod_may_ask_for_capture_where_the_mesh_does_not() -> None:
    spec = captured({"capture": "enabled"}, replace(SETTINGS, capture=False)).spec
    assert spec["initContainers"][0]["name"] == "pilotfish-init"


def test_capture_without_an_image_for_it_is_refused() -> None:
    with pytest.raises(InjectionError, match=f"{MESH}/capture is 'enabled', .* no --init-image"):
        captured({"capture": "enabled"}, replace(SETTINGS, init_image=""))


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_that_allows_no_capabilities_gets_variables_and_a_warning(level: str) -> None:
    namespace = {"labels": {"pod-security.kubernetes.io/enforce": level}}
    pod = {"containers": [{"name": "app"}]}
    injection = inject({}, pod, SETTINGS, namespace)
    assert "HTTP_PROXY" in env(injection.spec["containers"][0])
    assert injection.warnings[0].startswith(
        f"pilotfish: not captured, because the namespace enforces pod security {level!r}"
    )
    for wanted, first in (("enabled", "pilotfish-init"), ("disabled", "pilotfish-sidecar")):
        said = inject({"annotations": {f"{MESH}/capture": wanted}}, pod, SETTINGS, namespace)
        assert said.spec["initContainers"][0]["name"] == first
        assert said.warnings == ()


def test_an_ordinary_sidecar_comes_after_init_containers_that_would_reach_nothing_with_rules() -> None:
    spec = captured({"native-sidecar": "disabled"}, initContainers=[MIGRATE]).spec
    assert [c["name"] for c in spec["initContainers"]] == ["migrate", "pilotfish-init"]
    assert [c["name"] for c in spec["containers"]] == ["pilotfish-sidecar", "app"]


@pytest.mark.parametrize(
    ("policy", "variables"),
    [
        ("Never", {"PILOTFISH_APPLICATIONS": "1"}),
        ("OnFailure", {"PILOTFISH_APPLICATIONS": "1", "PILOTFISH_APPLICATION_RESTARTS": "true"}),
        ("Always", {}),
        (None, {}),
    ],
)
def test_an_ordinary_sidecar_of_a_pod_that_completes_watches_the_applications(
    policy: str | None, variables: dict[str, str]
) -> None:
    spec = captured({"native-sidecar": "disabled"}, **({"restartPolicy": policy} if policy else {})).spec
    sidecar = env(spec["containers"][0])
    assert {name: value for name, value in sidecar.items() if "APPLICATION" in name} == variables
    assert spec.get("shareProcessNamespace") is (True if variables else None)


@pytest.mark.parametrize(
    ("spec", "until"),
    [
        ({}, "deadline"),
        ({"shareProcessNamespace": True}, "processes"),
        ({"restartPolicy": "Never"}, "processes"),
        ({"restartPolicy": "Never", "shareProcessNamespace": False}, "deadline"),
    ],
)
def test_an_ordinary_sidecar_lets_applications_call_until_they_have_ended_as_far_as_it_can_see(
    spec: dict[str, Any], until: str
) -> None:
    sidecar = captured({"native-sidecar": "disabled"}, **spec).spec["containers"][0]
    assert env(sidecar)["PILOTFISH_OUTBOUND_UNTIL"] == until


def test_a_native_sidecar_watches_nobody() -> None:
    spec = captured(restartPolicy="Never").spec
    assert "shareProcessNamespace" not in spec
    assert "PILOTFISH_OUTBOUND_UNTIL" not in env(spec["initContainers"][1])


@pytest.mark.parametrize("more", [{"shareProcessNamespace": False}, {"hostPID": True}])
def test_an_ordinary_sidecar_that_may_not_watch_says_that_it_will_not_end(more: dict[str, bool]) -> None:
    injection = captured({"native-sidecar": "disabled"}, restartPolicy="Never", **more)
    assert "PILOTFISH_APPLICATIONS" not in env(injection.spec["containers"][0])
    assert injection.spec.items() >= more.items()
    assert "will not end by itself" in injection.warnings[0]


HTTP = {
    "httpGet": {
        "path": "/ok",
        "port": "web",
        "scheme": "HTTPS",
        "httpHeaders": [{"name": "a", "value": "$b"}],
    }
}
CONTAINER = {
    "name": "app",
    "image": "x",
    "ports": [{"name": "web", "containerPort": 8443}],
    "livenessProbe": {**HTTP, "timeoutSeconds": 3, "periodSeconds": 7},
    "readinessProbe": {"tcpSocket": {"port": 6379}, "terminationGracePeriodSeconds": 5},
    "startupProbe": {"grpc": {"port": 50051, "service": "shop"}},
}


def test_probes_lead_through_the_sidecar_and_keep_their_times() -> None:
    spec = captured(containers=[CONTAINER]).spec
    container = spec["containers"][0]

    def admin(last: str) -> dict[str, Any]:
        return {"path": f"/app-health/app/{last}", "port": 15000, "scheme": "HTTP"}

    assert container["livenessProbe"] == {"httpGet": admin("livez"), "timeoutSeconds": 3, "periodSeconds": 7}
    assert container["readinessProbe"] == {"httpGet": admin("readyz"), "terminationGracePeriodSeconds": 5}
    assert container["startupProbe"] == {"httpGet": admin("startupz")}
    # As the kubelet expands it: `$$` is a dollar.
    originals = json.loads(env(spec["initContainers"][1])["PILOTFISH_PROBES"].replace("$$", "$"))
    assert originals == {
        "/app-health/app/livez": {"httpGet": {**HTTP["httpGet"], "port": 8443}, "timeoutSeconds": 3},
        "/app-health/app/readyz": {"tcpSocket": {"port": 6379}, "timeoutSeconds": 1},
        "/app-health/app/startupz": {"grpc": {"port": 50051, "service": "shop"}, "timeoutSeconds": 1},
    }


@pytest.mark.parametrize(
    "probe",
    [
        {"exec": {"command": ["true"]}},
        {"httpGet": {"port": 80, "host": "10.9.9.9"}},
        {"tcpSocket": {"port": "nobody"}},
        {"httpGet": {"path": "/", "port": "nobody"}},
    ],
)
def test_probes_that_do_not_call_a_known_port_of_the_pod_stay(probe: dict[str, Any]) -> None:
    spec = captured(containers=[{"name": "app", "livenessProbe": probe}]).spec
    assert spec["containers"][0]["livenessProbe"] == probe
    assert "PILOTFISH_PROBES" not in env(spec["initContainers"][1])


def test_a_port_may_be_a_number_as_text() -> None:
    probe = {"tcpSocket": {"port": "8080"}}
    spec = captured(containers=[{"name": "app", "livenessProbe": probe}]).spec
    assert '"port":8080' in env(spec["initContainers"][1])["PILOTFISH_PROBES"]


def test_probes_of_other_native_sidecars_are_rewritten_too() -> None:
    probe = {"tcpSocket": {"port": 9}}
    helper = {"name": "helper", "restartPolicy": "Always", "startupProbe": probe}
    assert "httpGet" in captured(initContainers=[helper]).spec["initContainers"][2]["startupProbe"]
    ordinary = captured({"native-sidecar": "disabled"}, initContainers=[helper]).spec
    # That one runs before there is a sidecar.
    assert ordinary["initContainers"][0]["startupProbe"] == probe


def test_probes_stay_where_nothing_is_captured() -> None:
    assert captured({"capture": "disabled"}, containers=[CONTAINER]).spec["containers"][0].items() >= (
        CONTAINER.items()
    )


def test_http_hooks_stay_and_strict_mode_warns_of_them() -> None:
    hooks = {"preStop": {"httpGet": {"path": "/stop", "port": 80}}, "postStart": {"exec": {"command": ["x"]}}}
    container = {"name": "app", "lifecycle": hooks}
    permissive, strict = (
        captured(containers=[container]),
        captured({"inbound": "strict"}, containers=[container]),
    )
    for injection in (permissive, strict):
        assert injection.spec["containers"][0]["lifecycle"] == hooks
    assert permissive.warnings == ()
    [warning] = strict.warnings
    assert warning.startswith("pilotfish: app.preStop.httpGet will be refused")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("native", ["enabled", "disabled"])
def test_the_captured_pod_is_valid(version: str, native: str) -> None:
    injection = captured({"native-sidecar": native}, containers=[CONTAINER], restartPolicy="OnFailure")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": injection.metadata, "spec": injection.spec}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("native", ["enabled", "disabled"])
def test_injection_twice_is_injection_once(native: str) -> None:
    first = captured({"native-sidecar": native}, containers=[CONTAINER])
    second = inject(first.metadata, first.spec, SETTINGS)
    assert (second.metadata, second.spec) == (first.metadata, first.spec)
    assert second.skipped == "it has a sidecar"
