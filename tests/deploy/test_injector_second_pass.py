"""What the injector makes of pods that have their sidecar and were changed since, as later webhooks do."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from control_plane.injector.patch import Injection, inject, json_patch
from control_plane.injector.sidecar_container import InjectionSettings

MESH = "mesh.pilotfish.dev"
SETTINGS = InjectionSettings(image="sidecar:1", init_image="init:1")
PROBE = {"httpGet": {"path": "/ok?$a", "port": 8080}}
HELPER = {"name": "helper", "image": "x", "livenessProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 7}}
LED = {"path": "/app-health/helper/livez", "port": 15000, "scheme": "HTTP"}
ORIGINALS = {
    "/app-health/app/readyz": {**PROBE, "timeoutSeconds": 1},
    "/app-health/helper/livez": {"tcpSocket": {"port": 9}, "timeoutSeconds": 1},
}


def injected(**knobs: str) -> Injection:
    """After the first pass. The application has a probe."""
    named = {f"{MESH}/{knob.replace('_', '-')}": value for knob, value in knobs.items()}
    pod = {
        "containers": [{"name": "app", "image": "app:1", "readinessProbe": PROBE}],
        "restartPolicy": "Never",
    }
    return inject({"name": "x", "annotations": named}, pod, SETTINGS)


def again(first: Injection, changed: Any) -> Injection:
    """The second pass, which changes nothing that it is given, and after which a third has nothing to do."""
    kept = copy.deepcopy(changed)
    second = inject(first.metadata, changed, SETTINGS)
    assert changed == kept
    third = inject(second.metadata, second.spec, SETTINGS)
    assert (third.skipped, third.spec) == ("it has a sidecar", second.spec)
    assert second.metadata == first.metadata
    return second


def sidecar(spec: Any) -> dict[str, Any]:
    [found] = [
        each for each in (*spec["initContainers"], *spec["containers"]) if each["name"] == "pilotfish-sidecar"
    ]
    return {each["name"]: each.get("value") for each in found["env"]}


@pytest.mark.parametrize("native", ["enabled", "disabled"])
def test_probes_of_containers_that_came_later_lead_through_the_sidecar(native: str) -> None:
    first = injected(native_sidecar=native)
    changed = {**first.spec, "containers": [*first.spec["containers"], HELPER]}
    second = again(first, changed)
    assert (second.skipped, second.outcome) == ("", "new containers led to the sidecar")
    operations = json_patch({"metadata": first.metadata, "spec": changed}, second)
    where = ["/spec/containers", *(["/spec/initContainers"] if native == "enabled" else [])]
    assert [operation["path"] for operation in operations] == where
    assert second.spec["containers"][-1]["livenessProbe"] == {"httpGet": LED, "periodSeconds": 7}
    assert json.loads(sidecar(second.spec)["PILOTFISH_PROBES"].replace("$$", "$")) == ORIGINALS


def test_a_first_probe_that_came_later_leads_through_the_sidecar() -> None:
    first = inject({}, {"containers": [{"name": "app", "image": "app:1"}]}, SETTINGS)
    second = again(first, {**first.spec, "containers": [*first.spec["containers"], HELPER]})
    probes = json.loads(sidecar(second.spec)["PILOTFISH_PROBES"])
    assert list(probes) == ["/app-health/helper/livez"]


def test_an_init_container_that_came_later_counts_where_the_sidecar_is_there_before_it() -> None:
    first = injected()
    initial = first.spec["initContainers"]
    restartable = {**HELPER, "restartPolicy": "Always"}
    after = again(first, {**first.spec, "initContainers": [*initial, restartable]})
    assert after.spec["initContainers"][-1]["livenessProbe"]["httpGet"] == LED
    before = inject(first.metadata, {**first.spec, "initContainers": [restartable, *initial]}, SETTINGS)
    assert before.skipped == "it has a sidecar"


def test_an_application_that_came_later_gets_the_variables_of_the_proxy_where_nothing_is_captured() -> None:
    first = injected(capture="disabled")
    second = again(first, {**first.spec, "containers": [*first.spec["containers"], HELPER]})
    names = {each["name"] for each in second.spec["containers"][-1]["env"]}
    assert "HTTP_PROXY" in names
    assert second.spec["containers"][-1]["livenessProbe"] == HELPER["livenessProbe"]


def test_an_ordinary_sidecar_waits_for_the_end_of_containers_that_came_later() -> None:
    first = injected(native_sidecar="disabled")
    assert sidecar(first.spec)["PILOTFISH_APPLICATIONS"] == "1"
    second = again(first, {**first.spec, "containers": [HELPER, *first.spec["containers"]]})
    assert sidecar(second.spec)["PILOTFISH_APPLICATIONS"] == "2"


def test_a_sidecar_that_the_author_of_the_pod_has_written_stays_as_it_is() -> None:
    own = {"containers": [{"name": "pilotfish-sidecar", "image": "x"}, HELPER]}
    assert inject({}, own, SETTINGS).skipped == "it has a sidecar"
