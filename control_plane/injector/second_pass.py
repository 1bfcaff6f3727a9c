"""A pod that has its sidecar already: leads containers to it that were added since.

Called by `patch`. The API server shows the webhook a pod again that a later webhook has changed
(`reinvocationPolicy: IfNeeded`). What the first pass decided is read from the sidecar's variables, and stays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from control_plane.injector.probes import VARIABLE as PROBES
from control_plane.injector.probes import probes_variable, read_variable, rewrite_probes
from control_plane.injector.proxy_variables import add_proxy_variables
from control_plane.injector.sidecar_container import APPLICATIONS_VARIABLE as APPLICATIONS
from control_plane.injector.sidecar_container import CAPTURE_VARIABLE as CAPTURE
from mesh_api.names import INJECTED_LABEL, SIDECAR_CONTAINER

Object = dict[str, Any]


def lead_new_containers(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Object:
    """The spec with all containers led to the sidecar; an equal one if they are, or if the sidecar is the
    author's own."""
    new = copy.deepcopy(dict(spec))
    if (metadata.get("labels") or {}).get(INJECTED_LABEL) != "true":
        return new
    initial, containers = new.get("initContainers") or [], new["containers"]
    everything = [*initial, *containers]
    [at] = [at for at, each in enumerate(everything) if each.get("name") == SIDECAR_CONTAINER]
    sidecar, others = everything[at], [each for each in containers if each is not everything[at]]
    # Init containers before it run without it.
    beside = [*initial[at + 1 :], *others]
    variables = {each["name"]: each for each in sidecar.get("env") or ()}
    if CAPTURE not in variables:
        for container in beside:
            add_proxy_variables(container)
    elif originals := rewrite_probes(beside):
        known = read_variable(variables[PROBES]["value"]) if PROBES in variables else {}
        _set(sidecar, PROBES, probes_variable({**known, **originals}))
    if APPLICATIONS in variables:
        _set(sidecar, APPLICATIONS, str(len(others)))
    return new


def _set(sidecar: Object, name: str, value: str) -> None:
    """In its place, so that a variable which does not change changes nothing."""
    variable = next((each for each in sidecar["env"] if each["name"] == name), None)
    if variable is None:
        sidecar["env"].append({"name": name, "value": value})
    else:
        variable["value"] = value
