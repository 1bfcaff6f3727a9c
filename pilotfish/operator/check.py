"""`pilotfish check [--pre]`: every prerequisite and every running part of the mesh, a fact a line.

Runs the functions of the `*_facts` modules in order. What cannot be read becomes a fact too: a right that
is missing does not hide the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence

from pilotfish.operator import (
    clock_facts,
    cluster_facts,
    control_plane_facts,
    dry_run_facts,
    injection_facts,
    network_facts,
    rights_facts,
    route_facts,
    sidecar_facts,
)
from pilotfish.operator.errors import ApiError, OperatorError
from pilotfish.operator.facts import Fact, Finding, all_well, failed, json_of, text_of, warning
from pilotfish.operator.options import add_cluster_options, open_api, reporting
from pilotfish.operator.world import World

Look = Callable[[World], Iterator[Fact]]

CLUSTER: tuple[Look, ...] = (
    cluster_facts.kubernetes_version,
    cluster_facts.node_versions,
    clock_facts.machine,
    clock_facts.nodes,
    network_facts.plugin,
    cluster_facts.gateway_definitions,
)
BEFORE: dict[str, tuple[Look, ...]] = {
    "cluster": CLUSTER,
    "you": (rights_facts.installing, rights_facts.granting),
    "before installing": (cluster_facts.leftovers,),
}
AFTER: dict[str, tuple[Look, ...]] = {
    "cluster": (*CLUSTER, cluster_facts.own_definitions),
    "you": (rights_facts.reading,),
    "control plane": (
        control_plane_facts.deployment,
        control_plane_facts.services,
        control_plane_facts.replicas,
        control_plane_facts.one_version,
        clock_facts.control_plane,
        control_plane_facts.root,
        control_plane_facts.serving_certificates,
        control_plane_facts.configuration,
    ),
    "injection": (
        injection_facts.webhook,
        injection_facts.namespaces,
        dry_run_facts.new_pods,
        injection_facts.missed_pods,
    ),
    "sidecars": (
        sidecar_facts.rules,
        sidecar_facts.ready,
        sidecar_facts.connected,
        sidecar_facts.identities,
        sidecar_facts.in_step,
        sidecar_facts.versions,
        clock_facts.sidecars,
    ),
    "routes": (route_facts.routes,),
    "policies": (route_facts.policies,),
}
EXTRAS: dict[Look, str] = {
    cluster_facts.node_versions: "versions of kubelets",
    clock_facts.nodes: "clocks of nodes",
    network_facts.plugin: "settings of the network plugin",
}
"""What is not known where a right is missing that is not everybody's to have. Nothing has failed then."""
_INTERVAL = 2.0
"""Seconds between two looks of `--wait`."""


def run_check(arguments: Sequence[str]) -> int:
    """The verb. 0 when nothing failed, else 1; 2: the command line is wrong."""
    parser = argparse.ArgumentParser(
        prog="pilotfish check", description="Look at every part of the mesh, and say what is wrong."
    )
    add_cluster_options(parser, "look at workloads of this one alone (default: all)")
    add = parser.add_argument
    add("--pre", action="store_true", help="only what must hold before the mesh is installed")
    add("-o", "--output", choices=("text", "json"), default="text")
    add("--wait", type=float, default=0.0, metavar="SECONDS", help="until nothing fails, at most so long")
    given = parser.parse_args(arguments)
    return reporting(lambda: _check(given))


def _check(given: argparse.Namespace) -> int:
    sections, end = BEFORE if given.pre else AFTER, time.monotonic() + given.wait
    with open_api(given) as api:
        while True:
            found = look(World(api, given.system_namespace, given.namespace), sections)
            if all_well(found) or time.monotonic() + _INTERVAL > end:
                break
            time.sleep(_INTERVAL)
    print(json.dumps(json_of(found), indent=1) if given.output == "json" else text_of(found))
    return 0 if all_well(found) else 1


def look(world: World, sections: dict[str, tuple[Look, ...]]) -> list[Finding]:
    """All facts in order. An API server that does not answer is the last one."""
    findings: list[Finding] = []
    unreadable: set[str] = set()
    for section, looks in sections.items():
        for one in looks:
            try:
                for fact in one(world):
                    findings.append(Finding(section, fact))
            except OperatorError as error:
                if error.text not in unreadable:
                    findings.append(Finding(section, _unreadable(error, EXTRAS.get(one, ""))))
                unreadable.add(error.text)
                if isinstance(error, ApiError) and error.status in (0, 401):
                    return findings
    return findings


def _unreadable(error: OperatorError, extra: str) -> Fact:
    if extra and isinstance(error, ApiError) and error.status == 403:
        return warning("readable", f"{extra}: {error.text}", error.hint, error.link)
    return failed("readable", error.text, error.hint, error.link)
