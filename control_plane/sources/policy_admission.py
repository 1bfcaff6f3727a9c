"""What becomes of each policy: in force, behind an older one, or for nothing, and the conditions that say so.

`check_policies` is for every source; `admit_policies` is called by `kubernetes`, where a mistake concerns
its own object alone. Which policy holds for a port is decided in `model.policy`; here it is only said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from control_plane.kube.store import Key
from control_plane.model.mesh import Mesh
from control_plane.model.policy import PolicyTarget, TrafficPolicy
from control_plane.model.problem import Problem, Severity
from control_plane.model.service import Service, ServiceKey
from control_plane.sources.fields import path_text
from control_plane.sources.kube_objects import PolicyFacts
from control_plane.sources.objects import ObjectRef
from control_plane.sources.references import Finding, ports_text
from control_plane.sources.route_admission import Condition

KIND = "TrafficPolicy"


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """What a policy's status should say."""

    kind: str
    key: Key
    facts: PolicyFacts
    ancestors: tuple[tuple[str, tuple[Condition, ...]], ...]
    """Each of its targets, as JSON, with its conditions."""


@dataclass(frozen=True, slots=True)
class PolicyAdmission:
    policies: tuple[TrafficPolicy, ...]
    """To be served."""
    verdicts: tuple[PolicyVerdict, ...] = ()
    problems: tuple[Problem, ...] = ()


def check_policies(mesh: Mesh) -> Iterator[Finding]:
    """The path of a finding leads to one of the policy's targets."""
    by_age = sorted(mesh.policies, key=lambda policy: policy.age_rank)
    oldest: dict[tuple[ServiceKey, str], TrafficPolicy] = {}
    for policy in by_age:
        for target in policy.targets:
            oldest.setdefault((ServiceKey(policy.namespace, target.name), target.section_name), policy)
    for policy in by_age:
        ref = ObjectRef(KIND, policy.namespace, policy.name)
        for target in policy.targets:
            key = ServiceKey(policy.namespace, target.name)
            if (lost := _lost(mesh, key, target)) is not None:
                yield Finding(ref, *lost)
                continue
            older = oldest[key, target.section_name]
            if older is not policy:
                at = f"Service {key}" + (f" port {target.section_name}" if target.section_name else "")
                message = f"{older} is older and holds for {at}; remove one of the two, or what both name"
                yield Finding(ref, target.path, message, Severity.WARNING, "Conflicted")
            elif not target.section_name and (message := _overridden(policy, mesh.services[key], oldest)):
                yield Finding(ref, target.path, message, Severity.NOTE)


def _overridden(
    policy: TrafficPolicy, service: Service, oldest: Mapping[tuple[ServiceKey, str], TrafficPolicy]
) -> str:
    """For which ports a policy for the whole Service does not hold, because others are for them alone."""
    taken = [
        port.name
        for port in service.ports
        if port.name and oldest.get((service.key, port.name), policy) is not policy
    ]
    if not taken:
        return ""
    if len(taken) == len(service.ports):
        return f"every port of Service {service.key} has a policy of its own, so that this one has no effect"
    listed = ", ".join(taken)
    return f"calls to Service {service.key} follow the policy, but for ports with one of their own: {listed}"


def _lost(
    mesh: Mesh, key: ServiceKey, target: PolicyTarget
) -> tuple[tuple[str | int, ...], str, Severity, str] | None:
    """Path, message, severity and reason of a target that is not there."""
    service = mesh.services.get(key)
    if service is None:
        message = f"Service {key} does not exist; add it or correct the reference"
        return (*target.path, "name"), message, Severity.ERROR, "TargetNotFound"
    if service.external_name:
        message = f"Service {key} is of type ExternalName: calls to it are calls to what it names"
        return (*target.path, "name"), message, Severity.ERROR, "Invalid"
    if target.section_name and all(port.name != target.section_name for port in service.ports):
        message = f"Service {key} has no port named {target.section_name!r}; it has {ports_text(service)}"
        return (*target.path, "sectionName"), message, Severity.ERROR, "TargetNotFound"
    return None


def admit_policies(mesh: Mesh, policies: Mapping[Key, PolicyFacts]) -> PolicyAdmission:
    """All policies of a cluster, by key, in a mesh of the Services that are there."""
    listed = sorted(policies.items())
    served = tuple(facts.policy for _, facts in listed if facts.policy is not None)
    findings: dict[ObjectRef, list[Finding]] = {}
    for finding in check_policies(replace(mesh, policies=served)):
        findings.setdefault(finding.object, []).append(finding)
    verdicts: list[PolicyVerdict] = []
    problems: list[Problem] = []
    for key, facts in listed:
        ref = ObjectRef(KIND, *key)
        found = findings.get(ref, [])
        verdicts.append(PolicyVerdict(KIND, key, facts, tuple(_ancestors(facts, found))))
        problems += _problems(ref, facts, found)
    return PolicyAdmission(served, tuple(verdicts), tuple(problems))


def _ancestors(
    facts: PolicyFacts, findings: Iterable[Finding]
) -> Iterator[tuple[str, tuple[Condition, ...]]]:
    about = {path: finding for finding in findings for path in (finding.path, finding.path[:-1])}
    known = facts.policy.targets if facts.policy else ()
    paths = {(target.name, target.section_name): target.path for target in known}
    for text in facts.targets:
        item = json.loads(text)
        finding = about.get(paths.get((item.get("name"), item.get("sectionName") or ""), ()))
        if facts.refusal:
            kept = "; the last good version stays in use" if facts.policy else ""
            message = ": ".join(filter(None, (facts.field, facts.refusal))) + kept
            condition = Condition("Accepted", False, "Invalid", message)
        elif finding is not None and finding.reason:
            condition = Condition("Accepted", False, finding.reason, finding.message)
        else:
            message = finding.message if finding else "calls to this Service follow the policy"
            condition = Condition("Accepted", True, "Accepted", message)
        yield text, (condition,)


def _problems(ref: ObjectRef, facts: PolicyFacts, findings: Iterable[Finding]) -> Iterator[Problem]:
    if facts.refusal:
        kept = "its last good version stays in use" if facts.policy else "it is left out"
        yield Problem(Severity.ERROR, f"{facts.refusal}; {kept}", object=str(ref), field=facts.field)
        return
    for finding in findings:
        yield Problem(finding.severity, finding.message, object=str(ref), field=path_text(finding.path))
