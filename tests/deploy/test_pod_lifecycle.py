"""A sidecar as the kubelet runs it: bootstrap from variables, wait, drain, and SIGTERM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from control_plane.injector.patch import inject
from control_plane.injector.sidecar_container import InjectionSettings
from pilotfish.capture.host import has_loopback_ipv6
from pilotfish.drain import drain, run_drain, run_wait, wait_ready
from pilotfish.pod_bootstrap import PodError, bootstrap_file, pod_workload
from pilotfish.workload_bootstrap import bootstrap
from sidecar.bootstrap import load_bootstrap, parse_bootstrap
from sidecar.config.resources import Bootstrap, Discovery, SocketAddress, TcpProxyConfig
from sidecar.upstream.cluster_manager import UNLIMITED
from tests.support.certs import make_ca

ROOT_PEM = make_ca("root").certificate.public_bytes(Encoding.PEM).decode()
FIELDS = {
    "POD_NAME": "users-1",
    "POD_NAMESPACE": "shop",
    "POD_IP": "10.1.2.3",
    "POD_SERVICE_ACCOUNT": "users",
}


def environment() -> dict[str, str]:
    """As the kubelet makes it of what the injector wrote."""
    settings = InjectionSettings(image="x", root_pem=ROOT_PEM, otlp="jaeger:4318")
    [container] = inject({}, {"containers": [{"name": "app"}]}, settings).spec["initContainers"]
    return FIELDS | {item["name"]: item["value"] for item in container["env"] if "value" in item}


def test_the_sidecar_understands_what_the_injector_wrote() -> None:
    bootstrap = load_bootstrap(str(bootstrap_file(environment())))
    assert bootstrap.without_effect == ()
    [outbound] = bootstrap.listeners
    assert (outbound.address.host, outbound.address.port) == ("127.0.0.1", 15001)


@pytest.mark.parametrize(
    ("pod", "ipv6", "hosts"),
    [
        ("10.1.2.3", False, ["0.0.0.0"]),
        ("10.1.2.3", True, ["::", "0.0.0.0"]),
        ("fd00::3", False, ["::", "0.0.0.0"]),
    ],
)
def test_the_admin_port_of_a_pod_is_at_all_of_its_addresses(pod: str, ipv6: bool, hosts: list[str]) -> None:
    workload = pod_workload(environment() | {"POD_IP": pod}, ipv6)
    understood = parse_bootstrap(json.dumps(bootstrap(workload)))
    assert understood.admin == tuple(SocketAddress(host, 15000) for host in hosts)
    assert understood.without_effect == ()


def captured(inbound: str, ipv6: bool) -> Bootstrap:
    """As the sidecar of a captured pod understands its variables."""
    variables = environment() | {"PILOTFISH_CAPTURE": "true", "PILOTFISH_INBOUND": inbound}
    return parse_bootstrap(json.dumps(bootstrap(pod_workload(variables, ipv6))))


def test_a_captured_sidecar_takes_redirected_connections_in_both_directions() -> None:
    understood = captured("permissive", ipv6=False)
    assert understood.without_effect == ()
    outbound, inbound = understood.listeners
    assert outbound.address == SocketAddress("127.0.0.1", 15001)
    assert (outbound.original_dst, outbound.hand_off, outbound.additional_addresses) == (True, False, ())
    assert inbound.address == SocketAddress("0.0.0.0", 15006)
    assert (inbound.inbound, inbound.original_dst, inbound.hand_off) == (True, True, True)
    assert (inbound.inspect_tls, inbound.continue_on_timeout) == (True, True)
    assert inbound.additional_addresses == ()
    application = next(c for c in understood.clusters if c.discovery is Discovery.ORIGINAL_DST)
    assert application.source_addresses == ("127.0.0.6",)
    assert application.circuit_breakers == UNLIMITED
    # Longer than TCP takes to ask an application again whose accept queue was full.
    assert application.connect_timeout == 5.0
    [chain] = inbound.filter_chains
    assert isinstance(chain.network, TcpProxyConfig)
    assert [each.name for each in chain.network.clusters] == [application.name]


def test_a_captured_sidecar_takes_ipv6_too_where_it_is() -> None:
    understood = captured("permissive", ipv6=True)
    outbound, inbound = understood.listeners
    assert outbound.additional_addresses == (SocketAddress("::1", 15001),)
    assert inbound.additional_addresses == (SocketAddress("::", 15006),)
    application = next(c for c in understood.clusters if c.discovery is Discovery.ORIGINAL_DST)
    assert application.source_addresses == ("127.0.0.6", "::6")


def test_a_strict_sidecar_hands_nothing_on_that_discovery_does_not_know() -> None:
    understood = captured("strict", ipv6=True)
    assert understood.listeners[1].filter_chains == ()
    assert all(cluster.discovery is not Discovery.ORIGINAL_DST for cluster in understood.clusters)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000000000000000000000000001 01 80 10 80       lo\n", True),
        ("fe800000000000000000000000000001 02 40 20 80     eth0\n", False),
        ("", False),
        (None, False),
    ],
)
def test_ipv6_is_there_when_loopback_has_it(tmp_path: Path, text: str | None, expected: bool) -> None:
    if text is not None:
        (tmp_path / "if_inet6").write_text(text)
    assert has_loopback_ipv6(tmp_path / "if_inet6") is expected


def test_the_init_container_understands_its_arguments() -> None:
    knobs = {
        "skip-inbound-ports": "9090,9091",
        "skip-outbound-ports": "25",
        "exclude-outbound-cidrs": "10.0.0.0/8,fd00::/8",
    }
    metadata = {"annotations": {f"mesh.pilotfish.dev/{knob}": value for knob, value in knobs.items()}}
    settings = InjectionSettings(image="x", init_image="y")
    [init, _] = inject(metadata, {"containers": [{"name": "app"}]}, settings).spec["initContainers"]
    command = [sys.executable, "-m", "pilotfish", *init["args"], "--no-such-option"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    # Everything else was understood.
    assert "unrecognized arguments: --no-such-option" in result.stderr


@pytest.mark.parametrize("name", [*FIELDS, "PILOTFISH_ROOT_PEM", "PILOTFISH_CONTROL_PLANE"])
def test_a_missing_variable_is_named(name: str) -> None:
    given = environment()
    del given[name]
    with pytest.raises(PodError, match=f"not set: {name};"):
        pod_workload(given)


def test_a_value_that_cannot_be_is_named() -> None:
    with pytest.raises(PodError, match="PILOTFISH_TRACE_SAMPLING is 'much'"):
        pod_workload(environment() | {"PILOTFISH_TRACE_SAMPLING": "much"})
    with pytest.raises(PodError, match="PILOTFISH_OTLP is 'jaeger'"):
        pod_workload(environment() | {"PILOTFISH_OTLP": "jaeger"})


def test_the_command_says_what_is_missing_and_ends_with_64() -> None:
    command = [sys.executable, "-m", "pilotfish", "sidecar", "--from-environment"]
    result = subprocess.run(command, env={}, capture_output=True, text=True, timeout=30, cwd=Path.cwd())
    assert result.returncode == 64
    assert "not set: POD_NAME" in result.stderr


class Admin:
    """What a sidecar's admin port answers."""

    def __init__(self, connections: list[int], ready: list[int]) -> None:
        self.connections = connections
        """Open inbound ones at each look; the last stays."""
        self.ready = ready
        self.drained = 0
        self.port = 0

    @staticmethod
    def next(values: list[int]) -> int:
        return values.pop(0) if len(values) > 1 else values[0]

    def answer(self, method: str, path: str) -> tuple[int, str]:
        if (method, path) == ("POST", "/drain"):
            self.drained += 1
            return 200, "draining\n"
        if path == "/ready":
            status = self.next(self.ready)
            return status, "ready\n" if status == 200 else "waiting for discovery\n"
        inbound = {"direction": "inbound", "connections_active": self.next(self.connections)}
        outbound = {"direction": "outbound", "connections_active": 7}
        return 200, json.dumps({"listeners": [outbound, inbound]})


@contextmanager
def admin(connections: list[int], ready: list[int]) -> Iterator[Admin]:
    state = Admin(connections, ready)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, text = state.answer(self.command, self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class Time:
    """Virtual: sleeping is what makes it pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_draining_ends_when_nobody_was_connected_for_a_second() -> None:
    with admin([2, 1, 0, 1, 0], [200]) as state:
        time = Time()
        assert drain(f"127.0.0.1:{state.port}", 25, time, time.sleep) == 0
    assert state.drained == 1
    # Four looks until the last client has gone, and a second of quiet.
    assert time.now == 2.0


def test_draining_ends_at_the_deadline_and_says_how_many_are_left() -> None:
    with admin([3], [200]) as state:
        time = Time()
        assert drain(f"127.0.0.1:{state.port}", 5, time, time.sleep) == 3
    assert time.now == 5.0


def test_waiting_ends_when_the_sidecar_is_ready() -> None:
    with admin([0], [503, 503, 200]) as state:
        time = Time()
        assert wait_ready(f"127.0.0.1:{state.port}", 60, time, time.sleep) == ""
    assert time.now == 0.5


def test_waiting_in_vain_says_why() -> None:
    with admin([0], [503]) as state:
        time = Time()
        assert wait_ready(f"127.0.0.1:{state.port}", 1, time, time.sleep) == "waiting for discovery"


def test_the_commands_fail_when_no_sidecar_answers(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 1 of loopback: nobody listens there.
    assert run_drain(["--admin", "127.0.0.1:1", "--deadline", "0"]) == 1
    assert run_wait(["--admin", "127.0.0.1:1", "--deadline", "0"]) == 1
    assert capsys.readouterr().err.count("sidecar at 127.0.0.1:1") == 2


def test_sigterm_ends_pid_1_while_it_imports() -> None:
    """A process that believes to be PID 1, and that SIGTERM does not end by itself."""
    script = (
        "import os, signal, sys, time, types\n"
        "os.getpid = lambda: 1\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as the kernel treats PID 1
        "cli = types.ModuleType('pilotfish.cli')\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pilotfish.cli':\n"
        "            print('importing', flush=True); time.sleep(20)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "import runpy; runpy.run_module('pilotfish', run_name='__main__')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
