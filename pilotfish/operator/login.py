"""Runs the login program of a kubeconfig's user (`exec`), as cloud providers' command lines are.

Called by `kubeconfig`. What goes in and comes out is `ExecCredential` of the API group
client.authentication.k8s.io. The credential is kept in memory for this one command.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.operator.errors import OperatorError

LOGIN_TIMEOUT = 300.0
"""Seconds; somebody may have to find a browser window first."""


def login(
    user: Mapping[str, Any], name: str, cluster: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """The user's entry with a token or a certificate instead of the program. Raises OperatorError."""
    program = user["exec"]
    command = [str(program.get("command", "")), *map(str, program.get("args") or ())]
    who = f"login program {command[0]!r} of user {name!r}"
    mode, interactive = program.get("interactiveMode", "IfAvailable"), sys.stdin.isatty()
    if mode == "Always" and not interactive:
        raise OperatorError(f"{who} asks questions, and there is no terminal")
    ask = interactive and mode != "Never"
    given = {str(item["name"]): str(item["value"]) for item in program.get("env") or ()}
    told = {"KUBERNETES_EXEC_INFO": json.dumps(_question(program, cluster, ask))}
    try:
        done = subprocess.run(
            command,
            env={**environment, **given, **told},
            stdin=None if ask else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=LOGIN_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise OperatorError(f"{who} is not installed", str(program.get("installHint") or "")) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OperatorError(f"{who} did not run: {error}") from error
    if done.returncode:
        raise OperatorError(f"{who} ended with status {done.returncode}", "its own words are above")
    return {key: value for key, value in user.items() if key != "exec"} | _answer(done.stdout, who)


def _question(program: Mapping[str, Any], cluster: Mapping[str, Any], interactive: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": interactive}
    if program.get("provideClusterInfo"):
        keys = (
            "server",
            "tls-server-name",
            "insecure-skip-tls-verify",
            "certificate-authority-data",
            "proxy-url",
        )
        about = {key: cluster[key] for key in keys if key in cluster}
        if cluster.get("certificate-authority"):
            pem = Path(cluster["certificate-authority"]).read_bytes()
            about["certificate-authority-data"] = base64.b64encode(pem).decode()
        for extension in cluster.get("extensions") or ():
            if extension.get("name") == "client.authentication.k8s.io/exec":
                about["config"] = extension.get("extension")
        spec["cluster"] = about
    return {"apiVersion": program.get("apiVersion"), "kind": "ExecCredential", "spec": spec}


def _answer(output: bytes, who: str) -> dict[str, Any]:
    """Keys of a kubeconfig's user."""
    try:
        status = json.loads(output)["status"]
        found = {"token": status.get("token"), "client-certificate-data": None, "client-key-data": None}
        for kept, said in (
            ("client-certificate-data", "clientCertificateData"),
            ("client-key-data", "clientKeyData"),
        ):
            if status.get(said):
                found[kept] = base64.b64encode(status[said].encode()).decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{who} printed no ExecCredential with a status") from error
    given = {key: value for key, value in found.items() if value}
    if not given:
        raise OperatorError(f"{who} gave neither a token nor a certificate")
    return given
