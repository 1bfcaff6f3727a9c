"""The control plane as a process: start, status port, refusals that say what to do, SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.app import folder_configuration, issue_token
from control_plane.injector.webhook import WebhookCounts
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.model.problem import Problem, Severity
from control_plane.pipeline import Pipeline
from control_plane.settings import parse_account, parse_arguments, parse_duration, split_address
from control_plane.status import fingerprint
from control_plane.xds.types import ROUTE
from tests.support.processes import eventually, loopback
from tests.support.xds_source import Plane


def run(scenario: Callable[[Plane], Awaitable[None]], directory: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), Plane(directory) as plane:
            await scenario(plane)

    asyncio.run(main())


# --- addresses ---


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 5):
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("given", "reached"),
    [("*", ["127.0.0.1", "::1"]), ("[::1]", ["::1"]), ("127.0.0.1", ["127.0.0.1"])],
)
def test_a_control_plane_is_reached_by_the_addresses_that_it_was_given(
    tmp_path: Path, given: str, reached: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        async with Plane(tmp_path, listen=f"{given}:0", status=f"{given}:0") as plane:
            for port in (plane.app.port, plane.app.status_port):
                assert [host for host in ("127.0.0.1", "::1") if answers(host, port)] == reached
            assert f"status=http://{given}:{plane.app.status_port} " in caplog.text

    asyncio.run(main())


def test_all_addresses_are_those_of_ipv4_where_the_kernel_has_no_ipv6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Plane(tmp_path, status="*:0") as plane:
            assert [host for host in ("127.0.0.1", "::1") if answers(host, plane.app.status_port)] == [
                "127.0.0.1"
            ]

    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    asyncio.run(main())


# --- status port ---


async def refuse_a_route(plane: Plane, node: str) -> Any:
    """A client that refused route `r` and waits."""
    stream = plane.stream(plane.token())
    request = discovery_pb2.DeltaDiscoveryRequest
    plane.source.put(ROUTE, "r", b"R")
    about = {"id": node, "user_agent_version": "1.2.3"}
    await stream.write(request(node=about, type_url=ROUTE, resource_names_subscribe=["r"]))
    response = await stream.read()
    refusal = {"message": "<b>bad</b> route"}
    await stream.write(request(type_url=ROUTE, response_nonce=response.nonce, error_detail=refusal))
    async with asyncio.timeout(5):
        while not plane.app.discovery.clients()[0].nacks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return stream


def test_the_status_port_shows_who_is_not_in_step_and_why(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = await refuse_a_route(plane, "<script>alert(1)</script>")
        plane.problems.append(
            Problem(
                Severity.ERROR,
                "no such Service",
                object="HTTPRoute shop/cart",
                field="spec.rules[0].backendRefs[0]",
                file="routes.yaml",
                line=7,
            )
        )
        code, text = await plane.get("/status.json")
        status = json.loads(text)
        assert code == 200
        [client] = status["clients"]
        assert (client["identity"], client["in_step"]) == ("shop/users", False)
        assert client["version"] == "1.2.3"
        [state] = client["types"]
        assert (state["type"], state["state"], state["accepted_version"]) == ("RDS", "refused", "")
        assert (state["refused"]["names"], state["refused"]["text"]) == (["r"], "<b>bad</b> route")
        assert status["problems"] == [
            {
                "severity": "error",
                "file": "routes.yaml",
                "line": 7,
                "object": "HTTPRoute shop/cart",
                "field": "spec.rules[0].backendRefs[0]",
                "message": "no such Service",
            }
        ]
        assert (status["version"], status["replica"]) == (version("pilotfish"), socket.gethostname())
        certificates = status["certificates"]
        assert (certificates["root_days_left"], certificates["webhook_not_after"]) == (3649, None)
        assert certificates["root_sha256"] == fingerprint(plane.app.authority.root_pem)

        code, page = await plane.get("/")
        assert code == 200
        assert "&lt;b&gt;bad&lt;/b&gt; route" in page
        assert "&lt;script&gt;" in page
        assert "<script>" not in page
        assert "routes.yaml:7" in page
        assert "spec.rules[0].backendRefs[0]" in page
        assert "1 of 1 clients are not in step" in page
        stream.cancel()

    run(scenario, tmp_path)


def test_the_metrics_count_streams_pushes_and_refusals(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = await refuse_a_route(plane, "n")
        code, text = await plane.get("/metrics")
        assert code == 200
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        prefix = "pilotfish_control_plane"
        assert values[f"{prefix}_clients"] == "1"
        assert values[f"{prefix}_clients_behind"] == "1"
        assert values[f"{prefix}_streams_total"] == "1"
        assert int(values[f"{prefix}_tasks"]) > 1
        assert values[f"{prefix}_pushes_total"] == "1"
        assert values[f'{prefix}_nacks_total{{type="RDS"}}'] == "1"
        assert values[f'{prefix}_configuration_problems{{severity="error"}}'] == "0"
        stream.cancel()

    run(scenario, tmp_path)


def test_the_metrics_count_what_the_webhook_did(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        assert "webhook" not in (await plane.get("/metrics"))[1]
        plane.app.webhook_counts = lambda: WebhookCounts(injected=3, refused=1, seconds=0.5)
        lines = (await plane.get("/metrics"))[1].splitlines()
        assert 'pilotfish_control_plane_webhook_reviews_total{outcome="injected"} 3' in lines
        assert 'pilotfish_control_plane_webhook_reviews_total{outcome="refused"} 1' in lines
        assert "pilotfish_control_plane_webhook_seconds_total 0.5" in lines

    run(scenario, tmp_path)


def test_readiness_waits_for_a_configuration_and_liveness_does_not(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        assert await plane.get("/ready") == (200, "ready\n")
        plane.loaded = False
        code, text = await plane.get("/ready")
        assert (code, "no configuration without errors" in text) == (503, True)
        assert await plane.get("/live") == (200, "live\n")
        assert (await plane.get("/nothing"))[0] == 404

    run(scenario, tmp_path)


# --- the process ---


def start(directory: Path, *more: str) -> subprocess.Popen[str]:
    (directory / "config").mkdir(exist_ok=True)
    arguments = ("--config-dir", str(directory / "config"), "--ca-dir", str(directory / "ca"), *more)
    command = [sys.executable, "-m", "control_plane", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_sigterm_ends_the_process_with_status_zero(tmp_path: Path) -> None:
    host = loopback()
    listen, status = f"{host}:15010", f"{host}:15014"
    process = start(tmp_path, "--listen", listen, "--status", status)
    try:
        eventually(lambda: get(f"http://{status}/ready") == (200, "ready\n"))
        assert (tmp_path / "ca" / "root.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
        second = start(tmp_path, "--listen", listen, "--status", "127.0.0.1:0")
        third = start(tmp_path, "--listen", "127.0.0.1:0", "--status", status)
        _, text = second.communicate(timeout=30)
        assert second.returncode == 1
        assert f"error: cannot listen on {listen} (--listen)" in text
        _, text = third.communicate(timeout=30)
        assert third.returncode == 1
        assert f"error: cannot listen on {status} (--status)" in text
    finally:
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=30)
    assert process.returncode == 0
    assert text.splitlines()[-1].endswith("control plane stopped")
    assert "Traceback" not in text


def test_a_readable_ca_directory_stops_the_start_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o755)
    process = start(tmp_path, "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0")
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"run chmod 700 {tmp_path / 'ca'}" in text
    assert "Traceback" not in text


def test_tokens_issued_beside_a_running_control_plane_are_taken(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        token = issue_token(tmp_path / "ca", "shop", "late", timedelta(minutes=1))
        stream = plane.stream(token)
        request = discovery_pb2.DeltaDiscoveryRequest(
            node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["x"]
        )
        await stream.write(request)
        assert list((await stream.read()).removed_resources) == ["x"]
        stream.cancel()

    run(scenario, tmp_path)


# --- settings ---


def test_a_command_line_becomes_settings() -> None:
    settings = parse_arguments(
        ["--config-dir", "c", "--ca-dir", "d", "--max-leaf-ttl", "10s", "--server-name", "a.b, 10.0.0.1"]
    )
    assert settings.config_dir == Path("c")
    assert settings.listen == "127.0.0.1:15010"
    assert settings.status == "127.0.0.1:15014"
    assert settings.max_leaf_lifetime == timedelta(seconds=10)
    assert settings.server_names == ("a.b", "10.0.0.1")
    assert settings.push_quiet == timedelta(milliseconds=100)
    assert settings.trust_domain == "cluster.local"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--config-dir"),
        (["--config-dir", "c", "--ca-cert", "x"], "--ca-cert and --ca-key go together"),
        (["--config-dir", "c", "--listen", "15010"], "expected HOST:PORT"),
        (["--config-dir", "c", "--max-leaf-ttl", "soon"], "expected a form like 24h"),
        (["--config-dir", "c", "--max-leaf-ttl", "0"], "at least 1s"),
        (["--config-dir", "c", "--tracing-sampling", "101"], "from 0 to 100"),
        (["--config-dir", "c", "--cluster-domain", "cluster.local."], "a DNS name in lower case"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_reason(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_the_mesh_is_as_the_command_line_says(tmp_path: Path) -> None:
    domains = ["--trust-domain=example.org", "--cluster-domain=corp.example"]
    tracing = ["--tracing-sampling=5", "--tracing-cluster=otlp"]
    without = ["--no-access-log", "--no-overload-protection"]
    settings = parse_arguments([f"--config-dir={tmp_path}", *domains, *tracing, *without])
    pipeline = folder_configuration(settings).resources
    assert isinstance(pipeline, Pipeline)
    assert pipeline.settings == MeshSettings(
        "example.org", "corp.example", TracingSettings(5.0, "otlp"), False, False
    )


def test_only_what_listens_has_all_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    everywhere = [f"--{option}=*:0" for option in ("listen", "status", "injector")]
    cluster = ["--kubernetes", "--sidecar-image=x"]
    settings = parse_arguments([*everywhere, *cluster, "--sidecar-control-plane=plane:15010"])
    assert (settings.listen, settings.status, settings.injector) == ("*:0", "*:0", "*:0")
    for option in ("--sidecar-control-plane=*:1", "--sidecar-otlp=*:1"):
        with pytest.raises(SystemExit):
            parse_arguments([*cluster, option])
        assert "names nobody" in capsys.readouterr().err


def test_durations_addresses_and_accounts() -> None:
    assert parse_duration("1h30m") == timedelta(minutes=90)
    assert parse_duration("250ms") == timedelta(milliseconds=250)
    assert parse_duration("90") == timedelta(seconds=90)
    for wrong in ("", "h", "1x", "1h 30m", "-1s"):
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(wrong)
    assert split_address("[::1]:80") == ("::1", 80)
    for wrong in ("::1:80", "host", ":80", "host:http", "host:70000"):
        with pytest.raises(ValueError, match="not an address"):
            split_address(wrong)
    assert parse_account("shop/users") == ("shop", "users")
    for wrong in ("shop", "/users", "shop/", "a/b/c"):
        with pytest.raises(ValueError, match="not a service account"):
            parse_account(wrong)
