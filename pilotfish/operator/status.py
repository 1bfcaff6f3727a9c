"""`pilotfish status`: each sidecar, its version, whether it has its configuration, and how long its
certificate lasts.

What is connected is asked of all replicas of the control plane; what should be, of the API server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from mesh_api.names import ADMIN_PORT, INJECTED_LABEL
from pilotfish.operator.api import Api
from pilotfish.operator.errors import OperatorError
from pilotfish.operator.kinds import PODS
from pilotfish.operator.options import add_cluster_options, open_api, reporting
from pilotfish.operator.pods import full_name, why_not_running
from pilotfish.operator.replicas import Client, Replica, clients_of, replicas_at, replicas_in
from pilotfish.operator.table import remaining, table
from pilotfish.operator.transport import Object

NOT_CONNECTED = "not connected"
_HEAD = ("NAMESPACE", "NAME", "VERSION", "CONFIGURATION", "CERTIFICATE", "CONTROL PLANE")


@dataclass(frozen=True, slots=True)
class Row:
    """One sidecar."""

    namespace: str
    name: str
    version: str
    configuration: str
    """`in step`, `not in step`, or `not connected`."""
    why: tuple[str, ...]
    certificate_seconds_left: float | None
    control_plane: str
    """The replica that it is connected to."""


def run_status(arguments: Sequence[str]) -> int:
    """The verb. 0 when all sidecars are in step, else 1."""
    parser = argparse.ArgumentParser(prog="pilotfish status", description="Show each sidecar of the mesh.")
    add_cluster_options(parser, "only this one (default: all)")
    add = parser.add_argument
    add("-o", "--output", choices=("text", "json"), default="text")
    add(
        "--address",
        action="append",
        metavar="HOST:PORT",
        help="status port of a control plane, without a cluster; once for each replica",
    )
    given = parser.parse_args(arguments)
    return reporting(lambda: _status(given))


def _status(given: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    if given.address:
        replicas = replicas_at(given.address)
        rows = [_row(client, now) for client in clients_of(replicas)]
        rows = [row for row in rows if given.namespace in ("", row.namespace)]
    else:
        with open_api(given) as api:
            replicas = replicas_in(api, given.system_namespace)
            pods = api.items(PODS, given.namespace, f"{INJECTED_LABEL}=true")
            rows = ask_sidecars(api, rows_of(clients_of(replicas), pods, given.namespace, now))
    for replica in replicas:
        if replica.error and len(replicas) == 1:
            error = replica.error
            raise OperatorError(f"control plane {replica.name}: {error.text}", error.hint, error.link)
    if given.output == "json":
        print(
            json.dumps(
                {"replicas": list(map(_about, replicas)), "sidecars": list(map(asdict, rows))}, indent=1
            )
        )
    else:
        print(text(rows, replicas))
    healthy = all(row.configuration == "in step" for row in rows) and not any(r.error for r in replicas)
    return 0 if healthy else 1


def rows_of(clients: Sequence[Client], pods: Sequence[Object], namespace: str, now: datetime) -> list[Row]:
    """Connected clients of the namespace (empty: all), and pods whose sidecars are not connected."""
    rows = {
        (client.namespace, client.name): _row(client, now)
        for client in clients
        if namespace in ("", client.namespace)
    }
    for pod in pods:
        metadata, phase = pod["metadata"], (pod.get("status") or {}).get("phase")
        key = (str(metadata["namespace"]), str(metadata["name"]))
        if key not in rows and phase not in ("Succeeded", "Failed"):
            rows[key] = Row(*key, "", NOT_CONNECTED, _why_not_running(pod), None, "")
    return [rows[key] for key in sorted(rows)]


def _row(client: Client, now: datetime) -> Row:
    left = None if client.not_after is None else (client.not_after - now).total_seconds()
    return Row(
        client.namespace,
        client.name,
        client.version,
        "in step" if client.in_step else "not in step",
        client.why,
        left,
        client.replica,
    )


def _why_not_running(pod: Object) -> tuple[str, ...]:
    """Nothing of one that runs, which can be asked itself."""
    reason = why_not_running(pod)
    namespace, name = full_name(pod).split("/")
    describe = f"kubectl -n {namespace} describe pod {name}"
    return (f"its sidecar does not run ({reason}): {describe}",) if reason else ()


def ask_sidecars(api: Api, rows: Sequence[Row]) -> list[Row]:
    """Completes what the control plane does not know: why a sidecar is not connected, and certificates that
    were signed before the control plane started."""

    def complete(row: Row) -> Row:
        if row.configuration == NOT_CONNECTED:
            return row if row.why else _with_reason(api, row)
        return row if row.certificate_seconds_left is not None else _with_certificate(api, row)

    return api.at_once(complete, rows)


def _with_reason(api: Api, row: Row) -> Row:
    try:
        answer = api.page(row.namespace, row.name, ADMIN_PORT, "/ready")
        reason = _last_error(api, row) if answer.status == 200 else answer.text()
    except OperatorError as error:
        reason = error.text
    return replace(row, why=(reason,))


def _last_error(api: Api, row: Row) -> str:
    """What a sidecar that takes traffic says of its discovery. Raises OperatorError."""
    try:
        discovery = json.loads(api.page(row.namespace, row.name, ADMIN_PORT, "/config_dump").body)[
            "discovery"
        ]
        return str(discovery["last_error"] or "the sidecar says that it is connected")
    except (ValueError, KeyError, TypeError) as error:
        return f"the sidecar is ready; its /config_dump is not as expected: {type(error).__name__}: {error}"


def _with_certificate(api: Api, row: Row) -> Row:
    try:
        answer = api.page(row.namespace, row.name, ADMIN_PORT, "/certs")
        found = json.loads(answer.body)
        left = [entry["seconds_left"] for entry in found.values() if entry["seconds_left"] is not None]
    except (OperatorError, ValueError, KeyError, TypeError, AttributeError):
        return row  # no sidecar of ours, or out of reach: the column says that nobody knows
    return replace(row, certificate_seconds_left=min(left, default=None))


def text(rows: Sequence[Row], replicas: Sequence[Replica]) -> str:
    """The table, with reasons under the rows, and a line for the whole."""
    cells = [
        (
            row.namespace,
            row.name,
            row.version or "-",
            row.configuration,
            "-" if row.certificate_seconds_left is None else remaining(row.certificate_seconds_left),
            row.control_plane or "-",
        )
        for row in rows
    ]
    head, *lines = table(_HEAD, cells).splitlines()
    result = [head]
    for row, line in zip(rows, lines, strict=True):
        result += [line, *(f"    {reason}" for reason in row.why)]
    for replica in replicas:
        if replica.error:
            result.append(f"! control plane {replica.name} did not answer: {replica.error.text}")
            result += [f"    {part}" for part in (replica.error.hint, replica.error.link) if part]
    behind = sum(row.configuration != "in step" for row in rows)
    versions = ", ".join(sorted({replica.version for replica in replicas if not replica.error}))
    result.append(
        f"{len(rows)} sidecars, {behind} not in step; control plane {versions or 'unknown'}, "
        f"{len(replicas)} replica{'s' if len(replicas) != 1 else ''}"
    )
    return "\n".join(result)


def _about(replica: Replica) -> Object:
    return {
        "name": replica.name,
        "version": replica.version,
        "error": replica.error.text if replica.error else "",
    }
