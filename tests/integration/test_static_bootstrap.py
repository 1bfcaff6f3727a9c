"""Sidecars that run from an Envoy bootstrap alone: the benchmark's two files, and what is refused."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from benchmarks.certificates import make_certificates
from tests.support.clients import H2Client, fetch
from tests.support.h2_app import start_h2_app
from tests.support.processes import PILOTFISH, ROOT, eventually, loopback
from tests.support.sidecars import Sidecar, Tree, address, bootstrap, cluster, http_filter, listener, route

FILES = ("outbound", "inbound")


def small(host: str) -> Tree:
    """One listener, one cluster: nothing wrong with it."""
    made = listener("in", address(host, 15006), http_filter([route(cluster="app")]))
    return bootstrap(host, [made], [cluster("app", [(host, 8080)])])


def run(tree: Tree, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A sidecar that is expected to end by itself."""
    file = directory / "bootstrap.json"
    file.write_text(json.dumps(tree))
    command = [PILOTFISH, "sidecar", "--config", file, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


@pytest.mark.parametrize("engine", ["pilotfish", "h2"])
def test_the_files_that_run_a_pair_of_envoys_run_a_pair_of_sidecars(tmp_path: Path, engine: str) -> None:
    """As they are but for the address, so that a benchmark may run beside the test."""
    host = loopback()
    make_certificates(tmp_path / "build" / "bench" / "certs")
    sidecars = []
    with start_h2_app(host, 20003, "app", tmp_path):
        for name in FILES:
            text = (ROOT / "benchmarks" / f"{name}.yaml").read_text().replace("127.0.0.1", host)
            options = ("--http2-engine", engine)
            sidecars.append(Sidecar(name, text, tmp_path, *options, cwd=tmp_path))
        try:
            for sidecar in sidecars:
                sidecar.ready()
            assert fetch((host, 20001), "/", "POST", b"over HTTP/1.1").body == b"over HTTP/1.1"
            with H2Client((host, 20001)) as client:
                streams = [client.send("/", "POST", end=False) for _ in range(16)]
                for i, stream in enumerate(streams):
                    client.data(stream, b"%d" % i * 100_000, end=True)
                bodies = [client.wait(stream).body for stream in streams]
            assert bodies == [b"%d" % i * 100_000 for i in range(16)]

            def counted() -> bool:
                stats = sidecars[1].stats("listeners", listener="inbound")
                found = (stats["requests"], stats["detected"], stats["tls_failures"])
                assert found == (17, {"http2": 1}, 0)
                return True

            eventually(counted)
        finally:
            for sidecar in sidecars:
                sidecar.stop()


def test_a_field_that_is_not_implemented_ends_with_64_and_its_path(tmp_path: Path) -> None:
    host = loopback()
    tree = small(host)
    tree["static_resources"]["clusters"][0]["lb_policy"] = "RING_HASH"
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["strip_any_host_port"] = True
    done = run(tree, tmp_path)
    assert done.returncode == 64
    assert "static_resources.clusters[0].lb_policy" in done.stderr
    where = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.strip_any_host_port"
    assert where in done.stderr
    assert done.stdout == ""


def test_nothing_is_bound_before_the_configuration_is_known_to_be_good(tmp_path: Path) -> None:
    """The admin port is taken: a sidecar that tried to bind it would end with 1."""
    host = loopback()
    tree = small(host)
    tree["static_resources"]["clusters"][0]["lb_policy"] = "MAGLEV"
    with socket.create_server((host, 15000)):
        assert run(tree, tmp_path).returncode == 64
        del tree["static_resources"]["clusters"][0]["lb_policy"]
        done = run(tree, tmp_path)
    assert done.returncode == 1
    assert f"{host}:15000" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("static_resources: [", "bootstrap.yaml:1:20: not valid YAML"),
        ("static_resources: {listenerz: []}", "listenerz"),
        ("- a\n- b\n", "bootstrap"),
        ("", "bootstrap"),
    ],
)
def test_a_file_that_is_no_bootstrap_ends_with_64_and_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bootstrap.yaml"
    file.write_text(text)
    command = [PILOTFISH, "sidecar", "--config", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 64
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_certificate_is_named_and_ends_with_1(tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "inbound.yaml").read_text().replace("127.0.0.1", loopback())
    file = tmp_path / "inbound.yaml"
    file.write_text(text)
    command = [PILOTFISH, "sidecar", "--config", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "build/bench/certs/ca.pem" in done.stderr


def test_validate_says_what_has_no_effect_and_binds_nothing(tmp_path: Path) -> None:
    host = loopback()
    tree = small(host)
    tree["layered_runtime"] = {"layers": [{"name": "static", "static_layer": {"a.b": 1}}]}
    with socket.create_server((host, 15000)):
        done = run(tree, tmp_path, "--mode", "validate")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.search(r": layered_runtime\S*: without effect$", lines[0])
    assert lines[-1].endswith(": OK")


def test_validate_of_a_bad_file_ends_with_64(tmp_path: Path) -> None:
    tree = small(loopback())
    tree["static_resources"]["clusters"][0]["lb_policy"] = "RING_HASH"
    done = run(tree, tmp_path, "--mode", "validate")
    assert (done.returncode, done.stdout) == (64, "")
    assert "static_resources.clusters[0].lb_policy" in done.stderr
