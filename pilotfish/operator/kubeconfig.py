"""Which cluster, and as whom: what kubectl would take, from KUBECONFIG, contexts, login programs, or a pod.

Called by the operator's verbs. Files that KUBECONFIG lists are merged as kubectl merges them: the first that
says something counts. Never writes a file, and never shows a token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from control_plane.kube.access import AccessError, ClusterAccess, from_context, in_cluster
from pilotfish.operator.errors import OperatorError
from pilotfish.operator.login import login

_FILES = {"clusters": ("certificate-authority",), "users": ("client-certificate", "client-key", "tokenFile")}
"""Keys that hold paths, relative to the file that they stand in."""


@dataclass(frozen=True, slots=True)
class Context:
    """One cluster as one user."""

    access: ClusterAccess
    name: str
    """Empty in a pod."""
    namespace: str
    proxy: str = ""
    """`proxy-url` of the cluster; empty: what the environment says."""


def load_context(
    environment: Mapping[str, str], home: Path, name: str = "", file: Path | None = None
) -> Context:
    """The context `name`, or the current one; `file` counts instead of KUBECONFIG. Runs the login program
    if there is one. Raises OperatorError."""
    listed = [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
    paths = [file] if file else listed or [home / ".kube" / "config"]
    found = [path for path in paths if file or path.exists()]
    try:
        if not found and environment.get("KUBERNETES_SERVICE_HOST"):
            access = in_cluster(environment)
            return Context(access, "", access.namespace or "default")
        if not found:
            raise OperatorError(
                f"no kubeconfig: there is no {' and no '.join(map(str, paths))}",
                "name one with --kubeconfig or KUBECONFIG; without a cluster, use --address or --admin",
            )
        return _from_files(found, name, environment)
    except AccessError as error:
        raise OperatorError(str(error)) from error


def _from_files(paths: list[Path], name: str, environment: Mapping[str, str]) -> Context:
    config = _merged(paths)
    chosen = name or config["current-context"]
    contexts = {item.get("name"): item.get("context") or {} for item in config["contexts"]}
    if name and name not in contexts:
        names = ", ".join(sorted(map(str, contexts))) or "none"
        raise OperatorError(f"there is no context {name!r}; there is: {names}", "kubectl config get-contexts")
    context = contexts.get(chosen) or {}
    cluster = next(
        (i.get("cluster") or {} for i in config["clusters"] if i["name"] == context.get("cluster")), {}
    )
    for item in config["users"]:
        if item["name"] == context.get("user") and (item.get("user") or {}).get("exec"):
            item["user"] = login(item["user"], str(item["name"]), cluster, environment)
    access = from_context(paths[0], config, chosen)
    return Context(access, str(chosen), access.namespace or "default", str(cluster.get("proxy-url") or ""))


def _merged(paths: list[Path]) -> dict[str, Any]:
    """One configuration of all files, with absolute paths in it. Raises AccessError."""
    result: dict[str, Any] = {"current-context": "", "clusters": [], "users": [], "contexts": []}
    for path in paths:
        config = _read(path)
        result["current-context"] = result["current-context"] or config.get("current-context") or ""
        for kind in ("clusters", "users", "contexts"):
            known = {item["name"] for item in result[kind]}
            for item in config.get(kind) or []:
                if isinstance(item, dict) and item.get("name") and item["name"] not in known:
                    _make_absolute(path, item.get(kind[:-1]), _FILES.get(kind, ()))
                    result[kind].append(item)
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AccessError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise AccessError(f"{path} is no kubeconfig")
    return config


def _make_absolute(path: Path, owner: object, keys: tuple[str, ...]) -> None:
    if not isinstance(owner, dict):
        return
    for key in keys:
        if owner.get(key):
            owner[key] = str(path.parent.absolute() / Path(str(owner[key])).expanduser())
    program = owner.get("exec")
    if isinstance(program, dict) and "/" in str(program.get("command", "")):
        program["command"] = str(path.parent.absolute() / program["command"])
