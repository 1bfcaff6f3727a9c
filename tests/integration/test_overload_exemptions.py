"""Who is refused and who is answered where an application already has all the requests that it may have."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import grpc
import pytest

from tests.support.apps import start_app
from tests.support.clients import Answer, H2Client, fetch
from tests.support.grpc_server import grpc_server
from tests.support.processes import eventually, loopback
from tests.support.sidecars import (
    APP,
    INBOUND,
    Sidecar,
    Tree,
    address,
    any_of,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
)

GRPC_INBOUND = INBOUND + 1
HEALTH = "/grpc.health.v1.Health/Check"
HEALTH_CHECKERS = [
    "kube-probe/1.32",
    "GoogleHC/1.0",
    "ELB-HealthChecker/2.0",
    "Envoy/HC",
    "Consul Health Check",
]


def limited(to: str) -> Tree:
    """Routes to a cluster, one request at a time."""
    network = http_filter([route(cluster=to)])
    controller = {
        "concurrency_limit_params": {"max_concurrency_limit": 1},
        "min_rtt_calc_params": {"min_concurrency": 1},
    }
    kind = "filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"
    limiter = {"name": "limit", "typed_config": any_of(kind, gradient_controller_config=controller)}
    network["typed_config"]["http_filters"].insert(0, limiter)
    return network


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """Before an HTTP/1.1 and a gRPC application that each have one request, which does not end."""
    directory = tmp_path_factory.mktemp("overload")
    host = loopback()

    def hang(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata([])
        hanging.append(context)
        eventually(lambda: not context.is_active(), "the call to be cancelled", 60.0)
        return b""

    hanging: list[grpc.ServicerContext] = []
    methods = {"/test.Greeter/Hang": hang, HEALTH: lambda request, context: b"\x08\x01"}
    with start_app(host, APP, "app", directory), grpc_server(methods) as port:
        listeners = [
            listener("in", address(host, INBOUND), limited("app"), traffic_direction="INBOUND"),
            listener("grpc", address(host, GRPC_INBOUND), limited("grpc"), traffic_direction="INBOUND"),
        ]
        clusters = [cluster("app", [(host, APP)]), cluster("grpc", [("127.0.0.1", port)], True)]
        with Sidecar("sidecar", bootstrap(host, listeners, clusters), directory) as sidecar:
            sidecar.ready()
            waiting = Thread(target=fetch, args=((host, INBOUND), "/wait"))
            waiting.start()
            with channel(sidecar) as made:
                call = made.unary_unary("/test.Greeter/Hang").future(b"", timeout=60)
                eventually(
                    lambda: fetch((host, APP), "/counts").json().get("/wait") == 1, "the request to wait"
                )
                eventually(lambda: hanging, "the call to hang")
                yield sidecar
                call.cancel()
            fetch((host, APP), "/release")
            waiting.join(10)
            assert not waiting.is_alive()


def ask(sidecar: Sidecar, path: str = "/", agent: str = "test") -> Answer:
    return fetch((sidecar.admin[0], INBOUND), path, headers={"user-agent": agent})


def channel(sidecar: Sidecar) -> grpc.Channel:
    return grpc.insecure_channel(
        f"{sidecar.admin[0]}:{GRPC_INBOUND}",
        options=[("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)],
    )


def test_what_is_over_the_limit_gets_503_at_once_with_the_time_to_come_back(busy: Sidecar) -> None:
    answer = ask(busy)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert b"the application is overloaded: 1 requests are in flight" in answer.body
    assert busy.logged(status=503, flags="UO")


def test_over_http2_too(busy: Sidecar) -> None:
    with H2Client((busy.admin[0], INBOUND)) as client:
        answer = client.fetch("/")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_grpc_call_over_the_limit_gets_resource_exhausted(busy: Sidecar) -> None:
    with channel(busy) as made, pytest.raises(grpc.RpcError) as raised:
        made.unary_unary("/test.Greeter/Hang")(b"", timeout=30)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the application is overloaded" in raised.value.details()


@pytest.mark.parametrize("agent", HEALTH_CHECKERS)
def test_health_checks_are_answered_by_the_application(busy: Sidecar, agent: str) -> None:
    answer = ask(busy, "/headers", agent)
    assert answer.status == 200
    assert answer.json()["replica"] == "app"


def test_a_health_check_takes_no_place_and_frees_none(busy: Sidecar) -> None:
    assert ask(busy, "/headers", "kube-probe/1.32").status == 200
    assert ask(busy).status == 503


def test_grpcs_health_service_is_answered_by_the_application(busy: Sidecar) -> None:
    with channel(busy) as made:
        assert made.unary_unary(HEALTH)(b"", timeout=30) == b"\x08\x01"


@pytest.mark.parametrize("path", ["/ready", "/stats", "/metrics", "/clusters"])
def test_the_admin_port_is_answered(busy: Sidecar, path: str) -> None:
    assert busy.get(path)[0] == 200


def test_health_checks_without_end_are_limited_like_others(busy: Sidecar) -> None:
    """Their name is a header that anybody can send."""
    host = busy.admin[0]
    agent = [("user-agent", "kube-probe/1.32")]
    with H2Client((host, INBOUND)) as client:
        streams = [client.send("/wait?many", headers=agent) for _ in range(64)]
        client.flush()
        eventually(
            lambda: fetch((host, APP), "/counts").json().get("/wait", 0) >= 65, "the health checks to arrive"
        )
        assert client.fetch("/", headers=agent).status == 503
        fetch((host, APP), "/release?many")
        assert {client.wait(stream).status for stream in streams} == {200}
    assert ask(busy, "/headers", "kube-probe/1.32").status == 200
