"""The annotations that tune a sidecar: what they take, where they count, and that they are documented."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from control_plane.injector.annotations import KNOBS, Annotations, InjectionError, read_annotations
from control_plane.injector.patch import inject
from control_plane.injector.sidecar_container import InjectionSettings
from tests.support.manifests import ROOT

MESH = "mesh.pilotfish.dev"
SETTINGS = InjectionSettings(image="sidecar:1", init_image="init:1")
SPEC = {"containers": [{"name": "app", "image": "app:1"}]}


def metadata(**knobs: str) -> dict[str, object]:
    return {"annotations": {f"{MESH}/{knob.replace('_', '-')}": value for knob, value in knobs.items()}}


def test_the_documentation_lists_every_annotation_and_no_other() -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    rows = re.findall(rf"^\| `{MESH}/([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted([*KNOBS, "inject"])


def test_every_annotation_is_read() -> None:
    read, warnings = read_annotations(
        metadata(
            capture="enabled",
            inbound="strict",
            opaque_ports="3306, 6379",
            skip_inbound_ports="9090",
            skip_outbound_ports="25",
            exclude_outbound_cidrs="10.0.0.0/8,fd00::/8",
            native_sidecar="disabled",
            drain_deadline="20",
            proxy_cpu="100m",
            proxy_cpu_limit="1",
            proxy_memory="256Mi",
            log_level="debug",
            trace_sampling="0.5",
        )
    )
    assert warnings == ()
    assert read == Annotations(
        cpu="100m",
        cpu_limit="1",
        memory="256Mi",
        log_level="debug",
        trace_sampling="0.5",
        capture=True,
        inbound="strict",
        native=False,
        drain_deadline=20,
        opaque_ports=("3306", "6379"),
        skip_inbound_ports=("9090",),
        skip_outbound_ports=("25",),
        exclude_outbound_cidrs=("10.0.0.0/8", "fd00::/8"),
    )


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("capture", "true"),
        ("inbound", "Strict"),
        ("opaque-ports", "mysql"),
        ("opaque-ports", "3306,"),
        ("skip-inbound-ports", "0"),
        ("skip-outbound-ports", "65536"),
        ("exclude-outbound-cidrs", "10.0.0.1/8"),
        ("exclude-outbound-cidrs", "example.com"),
        ("native-sidecar", "yes"),
        ("drain-deadline", "0"),
        ("drain-deadline", "20s"),
        ("proxy-cpu-limit", "-1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_the_annotation_takes(knob: str, value: str) -> None:
    with pytest.raises(InjectionError) as caught:
        read_annotations({"annotations": {f"{MESH}/{knob}": value}})
    assert str(caught.value) == f"{MESH}/{knob} is {value!r}; it takes {KNOBS[knob].takes}"


def test_an_empty_list_of_ports_is_none() -> None:
    assert read_annotations(metadata(opaque_ports=""))[0].opaque_ports == ()


def test_a_namespace_gives_defaults_that_a_pod_overrides() -> None:
    namespace = metadata(inbound="strict", log_level="debug")
    read, _ = read_annotations(metadata(log_level="error"), namespace)
    assert (read.inbound, read.log_level) == ("strict", "error")
    injected = inject({}, SPEC, SETTINGS, namespace)
    assert injected.metadata["annotations"][f"{MESH}/inbound"] == "strict"


def test_a_mistake_of_the_namespace_is_called_so() -> None:
    with pytest.raises(InjectionError, match=f"{MESH}/inbound on the namespace is 'x'; it takes strict or"):
        read_annotations({}, metadata(inbound="x"))


def test_an_unknown_annotation_is_a_warning_with_the_likely_name() -> None:
    given = {f"{MESH}/skip-inbound-port": "1", f"{MESH}/zzz": "1", "other.dev/x": "1", "plain": "1"}
    injection = inject({"annotations": given}, SPEC, SETTINGS)
    assert injection.warnings == (
        f"pilotfish: annotation {MESH}/skip-inbound-port is not known and does nothing; "
        "did you mean skip-inbound-ports?",
        f"pilotfish: annotation {MESH}/zzz is not known and does nothing",
    )


def test_a_cpu_limit_below_the_mesh_s_request_lowers_the_request() -> None:
    def resources(**knobs: str) -> object:
        return inject(metadata(**knobs), SPEC, SETTINGS).spec["initContainers"][1]["resources"]

    assert resources(proxy_cpu_limit="20m") == {
        "requests": {"cpu": "20m", "memory": "96Mi"},
        "limits": {"cpu": "20m", "memory": "384Mi"},
    }
    assert resources(proxy_cpu_limit="1") == {
        "requests": {"cpu": "50m", "memory": "96Mi"},
        "limits": {"cpu": "1", "memory": "384Mi"},
    }


def test_the_drain_deadline_is_one_for_hook_and_sidecar() -> None:
    sidecar = inject(metadata(drain_deadline="12"), SPEC, SETTINGS).spec["initContainers"][1]
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["pilotfish", "drain", "--deadline", "12"]
    assert sidecar["args"][2:4] == ["--drain-deadline", "12"]


def test_draining_cannot_take_longer_than_the_grace_period() -> None:
    with pytest.raises(InjectionError, match=f"{MESH}/drain-deadline is '31'; it takes at most .* 30$"):
        inject(metadata(drain_deadline="31"), SPEC, SETTINGS)


@pytest.mark.parametrize("native", [True, False])
def test_a_pod_chooses_the_kind_of_container_itself(native: bool) -> None:
    chosen = metadata(native_sidecar="enabled" if native else "disabled")
    spec = inject(chosen, SPEC, replace(SETTINGS, native=not native)).spec
    names = [c["name"] for c in spec["initContainers" if native else "containers"]]
    assert "pilotfish-sidecar" in names
