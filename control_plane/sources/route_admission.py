"""What becomes of each route of a cluster: served, served in part, or not, and the conditions that say so.

Called by `kubernetes` with a mesh that has no routes yet. Where the folder source refuses everything for
one mistake, here only the route that has it suffers: a parent that does not exist is left out, and the
share of a backend that does not exist is answered 500 (Gateway API v1, HTTPRouteRule.backendRefs).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from control_plane.kube.store import Key
from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem, Severity
from control_plane.model.route import ParentRef, Route
from control_plane.sources.fields import path_text
from control_plane.sources.kube_objects import RouteFacts
from control_plane.sources.objects import ObjectRef
from control_plane.sources.references import Finding, check_conflicts, check_route


@dataclass(frozen=True, slots=True)
class Condition:
    """Of a route at one parent; the types, statuses and reasons are Gateway API's."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RouteVerdict:
    """What a route's status should say."""

    kind: str
    key: Key
    facts: RouteFacts
    parents: tuple[tuple[str, tuple[Condition, ...]], ...]
    """Each reference to a Service, as JSON, with its conditions."""


@dataclass(frozen=True, slots=True)
class Admission:
    routes: tuple[Route, ...]
    """To be served."""
    verdicts: tuple[RouteVerdict, ...]
    problems: tuple[Problem, ...]


_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs", "every backend exists")
_UNRESOLVED = ("BackendNotFound", "InvalidKind", "RefNotPermitted")
_ACCEPTED = Condition("Accepted", True, "Accepted", "calls to this Service follow the route")


def admit(mesh: Mesh, kinds: Mapping[str, Mapping[Key, RouteFacts]]) -> Admission:
    """All routes, by kind and key, in a mesh of the Services and grants that are there."""
    findings: dict[ObjectRef, list[Finding]] = {}
    served: dict[ObjectRef, Route] = {}
    for kind, routes in kinds.items():
        for key, facts in sorted(routes.items()):
            ref = ObjectRef(kind, *key)
            findings[ref] = []
            if facts.route is not None:
                findings[ref] = list(check_route(mesh, facts.route))
                served[ref] = _without_missing(facts.route, findings[ref])
    for finding in check_conflicts(replace(mesh, routes=tuple(served.values()))):
        findings[finding.object].append(finding)
        if finding.reason:
            served[finding.object] = _without_missing(served[finding.object], [finding])
    verdicts: list[RouteVerdict] = []
    problems: list[Problem] = []
    for kind, routes in kinds.items():
        for key, facts in sorted(routes.items()):
            ref = ObjectRef(kind, *key)
            verdicts.append(RouteVerdict(kind, key, facts, _parents(key, facts, findings[ref])))
            problems += _problems(ref, facts, findings[ref])
    return Admission(
        tuple(route for route in served.values() if route.parents), tuple(verdicts), tuple(problems)
    )


def _without_missing(route: Route, findings: Iterable[Finding]) -> Route:
    """Without the parents, and with the backends marked, that the findings are about."""
    lost = {path for finding in findings if finding.reason for path in (finding.path, finding.path[:-1])}
    lost_parents = any(parent.path in lost for parent in route.parents)
    lost_backends = any(backend.path in lost for rule in route.rules for backend in rule.backends)
    if lost_parents:
        kept = tuple(parent for parent in route.parents if parent.path not in lost)
        route = replace(route, parents=kept)
    if lost_backends:
        rules = tuple(
            replace(
                rule,
                backends=tuple(
                    replace(backend, resolved=backend.resolved and backend.path not in lost)
                    for backend in rule.backends
                ),
            )
            for rule in route.rules
        )
        route = replace(route, rules=rules)
    return route


def _parents(
    key: Key, facts: RouteFacts, findings: Iterable[Finding]
) -> tuple[tuple[str, tuple[Condition, ...]], ...]:
    if facts.refusal:
        text = ": ".join(filter(None, (facts.field, facts.refusal)))
        text += "; the last good version stays in use" if facts.route else ""
        refused = (Condition("Accepted", False, "UnsupportedValue", text),)
        return tuple((parent, refused) for parent in facts.parents)
    backends = [f for f in findings if f.reason in _UNRESOLVED]
    resolved = _RESOLVED
    if backends:
        text = "; ".join(f"{path_text(f.path)}: {f.message}" for f in backends[:8])
        resolved = Condition("ResolvedRefs", False, backends[0].reason, text)
    about = {
        path: finding
        for finding in findings
        if finding.reason in ("NoMatchingParent", "Conflicted")
        for path in (finding.path, finding.path[:-1])
    }
    wrong = {
        parent: about[parent.path]
        for parent in (facts.route.parents if facts.route else ())
        if parent.path in about
    }
    listed = []
    for text in facts.parents:
        finding = wrong.get(_reference(text, key[0]))
        accepted = _ACCEPTED
        if finding is not None:
            accepted = Condition("Accepted", False, finding.reason, finding.message)
        listed.append((text, (accepted, resolved)))
    return tuple(listed)


def _reference(text: str, namespace: str) -> ParentRef:
    item = json.loads(text)
    return ParentRef(
        item.get("namespace") or namespace,
        item.get("name", ""),
        item.get("port"),
        item.get("sectionName") or "",
    )


def _problems(ref: ObjectRef, facts: RouteFacts, findings: Iterable[Finding]) -> Iterable[Problem]:
    if facts.refusal:
        kept = "its last good version stays in use" if facts.route else "it is left out"
        yield Problem(Severity.ERROR, f"{facts.refusal}; {kept}", object=str(ref), field=facts.field)
        return
    for finding in findings:
        # Without a reason both routes serve, the older one first, as Gateway API says.
        severity = finding.severity
        if severity is Severity.ERROR and not finding.reason:
            severity = Severity.WARNING
        yield Problem(severity, finding.message, object=str(ref), field=path_text(finding.path))
