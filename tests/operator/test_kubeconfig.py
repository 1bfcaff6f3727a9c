"""Which cluster and as whom: KUBECONFIG, contexts, relative files, login programs, pods, and errors."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilotfish.operator.errors import OperatorError
from pilotfish.operator.kubeconfig import Context, load_context

CREDENTIAL = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}


def config(
    server: str = "https://one", user: Any = None, current: str = "one", **cluster: Any
) -> dict[str, Any]:
    """With one context, named as it is current."""
    return {
        "current-context": current,
        "contexts": [
            {"name": current, "context": {"cluster": current, "user": current, "namespace": "shop"}}
        ],
        "clusters": [{"name": current, "cluster": {"server": server, **cluster}}],
        "users": [{"name": current, "user": user or {"token": "secret"}}],
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def program(directory: Path, body: str) -> str:
    """A login program; returns its path, relative to the kubeconfig."""
    path = directory / "login"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return "./login"


def load(directory: Path, user: dict[str, Any], **cluster: Any) -> Context:
    file = write(directory / "config", config(user=user, **cluster))
    return load_context(dict(os.environ), directory, file=file)


def test_the_first_file_of_the_list_that_says_something_counts(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "config", config("https://a", current="one"))
    second = write(tmp_path / "b" / "config", config("https://b", current="two"))
    missing = tmp_path / "missing"
    environment = {"KUBECONFIG": f"{missing}:{first}:{second}"}
    assert load_context(environment, tmp_path).access.server == "https://a"
    other = load_context(environment, tmp_path, "two")
    assert (other.access.server, other.name, other.namespace) == ("https://b", "two", "shop")


def test_files_are_beside_the_kubeconfig_that_names_them(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "config", config("https://a"))
    user = {"tokenFile": "token"}
    second = write(tmp_path / "b" / "config", config("https://b", user, "two"))
    (tmp_path / "b" / "token").write_text("of b\n")
    context = load_context({"KUBECONFIG": f"{first}:{second}"}, tmp_path, "two")
    assert context.access.token() == "of b"


def test_without_a_kubeconfig_a_pod_is_itself(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    with pytest.raises(OperatorError, match="the pod needs its service account"):
        load_context(environment, tmp_path)


def test_no_kubeconfig_at_all_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"no kubeconfig: there is no .*/\.kube/config"):
        load_context({}, tmp_path)


def test_an_unknown_context_names_those_that_there_are(tmp_path: Path) -> None:
    file = write(tmp_path / "config", config())
    with pytest.raises(OperatorError, match="there is no context 'two'; there is: one"):
        load_context({}, tmp_path, "two", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read"), ("[]", "is no kubeconfig"), ("{}", "has no current-context")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    with pytest.raises(OperatorError, match=f"config.*{message}|{message}.*config"):
        load_context({}, tmp_path, file=file)


def test_a_login_program_gives_the_token_and_is_told_of_the_cluster(tmp_path: Path) -> None:
    answer = json.dumps({**CREDENTIAL, "status": {"token": "fresh"}})
    command = program(tmp_path, f"printf '%s' \"$KUBERNETES_EXEC_INFO\" > {tmp_path}/asked\necho '{answer}'")
    spec = {
        "apiVersion": CREDENTIAL["apiVersion"],
        "command": command,
        "provideClusterInfo": True,
        "interactiveMode": "Never",
    }
    context = load(tmp_path, {"exec": spec}, **{"certificate-authority-data": "Y2E="})
    assert context.access.token() == "fresh"
    assert json.loads((tmp_path / "asked").read_text()) == {
        **CREDENTIAL,
        "spec": {
            "interactive": False,
            "cluster": {"server": "https://one", "certificate-authority-data": "Y2E="},
        },
    }


def test_a_login_program_may_give_a_certificate(tmp_path: Path) -> None:
    status = {"clientCertificateData": "CERT", "clientKeyData": "KEY"}
    command = program(tmp_path, f"echo '{json.dumps({**CREDENTIAL, 'status': status})}'")
    access = load(tmp_path, {"exec": {"command": command}}).access
    assert (access.client_certificate, access.client_key, access.token()) == ("CERT", "KEY", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 3", "ended with status 3"),
        ("echo hello", "printed no ExecCredential"),
        ("echo '{\"status\": {}}'", "gave neither a token nor a certificate"),
    ],
)
def test_a_login_program_that_fails_is_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(OperatorError, match=rf"login program '.*/login' of user 'one' {message}"):
        load(tmp_path, {"exec": {"command": program(tmp_path, body)}})


def test_a_login_program_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="'no-such-login' of user 'one' is not installed") as caught:
        load(tmp_path, {"exec": {"command": "no-such-login", "installHint": "apt install it"}})
    assert caught.value.hint == "apt install it"


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    key = base64.b64encode(b"-----PRIVATE").decode()
    user = {"token": "secret", "client-certificate-data": key, "client-key-data": key}
    shown = repr(load(tmp_path, user))
    assert "secret" not in shown
    assert "PRIVATE" not in shown


def test_the_commands_need_no_extra_of_the_package() -> None:
    code = (
        "import sys, pilotfish.operator.check, pilotfish.operator.status, pilotfish.operator.proxy_config\n"
        "print(sorted({'aiohttp', 'cryptography', 'google.protobuf', 'grpc', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
