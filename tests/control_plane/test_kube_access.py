"""Reaching an API server: kubeconfig files, a pod's own files, TLS, and what is said when it fails."""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.kube.access import AccessError, ClusterAccess, from_kubeconfig, in_cluster
from control_plane.kube.client import KubeClient, KubeError
from tests.support.certs import make_ca
from tests.support.kube_api import TOKEN, KubeApi


def kubeconfig(tmp_path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = tmp_path / "config"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def error_of(access: ClusterAccess) -> KubeError:
    async def main() -> None:
        client = KubeClient(access)
        try:
            await client.request("GET", "/api/v1/services")
        finally:
            await client.close()

    with pytest.raises(KubeError) as caught:
        asyncio.run(main())
    return caught.value


def test_a_kubeconfig_gives_server_ca_token_and_namespace(tmp_path: Path) -> None:
    async def main() -> None:
        async with KubeApi(tmp_path) as api:
            access = from_kubeconfig(api.kubeconfig())
            assert (access.token(), access.namespace) == (TOKEN, "mesh")
            client = KubeClient(access)
            assert (await client.request("GET", "/api/v1/services"))["items"] == []
            await client.close()

    asyncio.run(main())


def test_a_client_certificate_can_be_given_as_data_or_as_files(tmp_path: Path) -> None:
    certificate, key = make_ca().issue(dns=["user"])
    (tmp_path / "user.crt").write_bytes(certificate)
    (tmp_path / "user.key").write_bytes(key)
    as_files = from_kubeconfig(
        kubeconfig(tmp_path, {"client-certificate": "user.crt", "client-key": str(tmp_path / "user.key")})
    )
    encoded = {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    as_data = from_kubeconfig(kubeconfig(tmp_path, encoded))
    assert as_files.client_key == as_data.client_key == key.decode()
    assert as_data.tls() is as_data.tls()
    assert "PRIVATE" not in repr(as_data)


@pytest.mark.parametrize(
    ("user", "cluster", "says"),
    [
        ({"exec": {"command": "aws"}}, {}, "logs in with a program (exec)"),
        ({"auth-provider": {"name": "gcp"}}, {}, "logs in with a program (auth-provider)"),
        ({"client-certificate-data": "YQ=="}, {}, "only one of client-certificate and client-key"),
        ({}, {"server": "http://127.0.0.1"}, "no https:// address"),
        ({}, {"certificate-authority": "nowhere.crt"}, "cannot read certificate-authority"),
        ({}, {"certificate-authority-data": "%%"}, "not base64"),
    ],
)
def test_what_a_kubeconfig_cannot_do_is_said(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], says: str
) -> None:
    with pytest.raises(AccessError, match=says.replace("(", r"\(").replace(")", r"\)")):
        from_kubeconfig(kubeconfig(tmp_path, user, **cluster))


def test_a_kubeconfig_without_context_or_with_a_dangling_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("clusters: []")
    with pytest.raises(AccessError, match="no current-context"):
        from_kubeconfig(path)
    path.write_text("current-context: gone")
    with pytest.raises(AccessError, match="no context named 'gone'"):
        from_kubeconfig(path)
    with pytest.raises(AccessError, match="cannot read"):
        from_kubeconfig(tmp_path / "nothing")


def test_in_a_pod_the_token_is_read_again_when_the_kubelet_replaced_it(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        in_cluster(environment, tmp_path)
    ca = make_ca()
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "ca.crt").write_bytes(ca.ca_pem)
    (tmp_path / "namespace").write_text("mesh")
    access = in_cluster(environment, tmp_path)
    assert (access.server, access.namespace, access.token()) == ("https://[fd00::1]:6443", "mesh", "one")
    (tmp_path / "token").write_text("two\n")
    assert access.token() == "two"
    assert "two" not in repr(access)


def test_a_replaced_ca_file_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with KubeApi(tmp_path) as api:
            right = from_kubeconfig(api.kubeconfig()).ca_data
            file = tmp_path / "ca.crt"
            file.write_bytes(make_ca("another").ca_pem)
            access = ClusterAccess(f"https://127.0.0.1:{api.port}", ca_file=file, fixed_token=TOKEN)
            client = KubeClient(access)
            with pytest.raises(KubeError, match="certificate verify failed"):
                await client.request("GET", "/api/v1/services")
            file.write_text(right)
            assert (await client.request("GET", "/api/v1/services"))["items"] == []
            await client.close()

    asyncio.run(main())


def test_a_root_without_the_extensions_that_newer_pythons_ask_for_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roots of EKS and others have no key identifiers; Python 3.13 checks strictly unless told not to."""
    default = ssl.create_default_context

    def strict(**options: Any) -> ssl.SSLContext:
        context = default(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    context = from_kubeconfig(kubeconfig(tmp_path, {"token": "t"})).tls()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_outside_of_a_pod_the_way_out_is_named() -> None:
    with pytest.raises(AccessError, match="name a file with --kubeconfig"):
        in_cluster({})


def test_errors_say_what_the_server_said_or_that_there_is_none(tmp_path: Path) -> None:
    nobody = error_of(ClusterAccess("https://127.0.0.1:1", fixed_token="secret-token"))
    assert nobody.status == 0
    assert "127.0.0.1:1" in str(nobody)
    assert "secret-token" not in str(nobody)
    gone = error_of(ClusterAccess("https://127.0.0.1:1", token_file=tmp_path / "gone"))
    assert "cannot read the token" in str(gone)


def test_a_wrong_token_is_an_answer_with_its_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with KubeApi(tmp_path) as api:
            access = from_kubeconfig(api.kubeconfig())
            access.fixed_token = "wrong"
            client = KubeClient(access)
            with pytest.raises(KubeError, match="401 Unauthorized: no valid token"):
                await client.request("GET", "/api/v1/services")
            await client.close()

    asyncio.run(main())
