"""Names, attributes and status of spans, from OpenTelemetry's semantic conventions for HTTP and gRPC."""

from __future__ import annotations

import pytest
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)

from sidecar.telemetry.conventions import (
    mesh_attributes,
    request_attributes,
    result_attributes,
    span_name,
    span_status,
)
from sidecar.telemetry.tracing import KIND_CLIENT, KIND_SERVER, STATUS_ERROR, STATUS_UNSET, AttributeValue


def request(
    kind: int = KIND_SERVER,
    method: bytes = b"GET",
    scheme: bytes = b"http",
    authority: bytes = b"orders:8080",
    path: bytes = b"/orders/7?token=secret",
    user_agent: bytes | None = b"requests/2",
    grpc: bool = False,
) -> dict[str, AttributeValue]:
    pairs = request_attributes(kind, method, scheme, authority, path, "2", user_agent, grpc)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_a_server_span_has_the_required_http_attributes() -> None:
    assert request() == {
        http_attributes.HTTP_REQUEST_METHOD: b"GET",
        url_attributes.URL_PATH: b"/orders/7",
        url_attributes.URL_SCHEME: b"http",
        server_attributes.SERVER_ADDRESS: b"orders",
        server_attributes.SERVER_PORT: 8080,
        network_attributes.NETWORK_PROTOCOL_VERSION: "2",
        user_agent_attributes.USER_AGENT_ORIGINAL: b"requests/2",
    }


def test_a_client_span_has_the_full_url_instead_and_no_query() -> None:
    attributes = request(KIND_CLIENT, user_agent=None)
    assert attributes[url_attributes.URL_FULL] == b"http://orders:8080/orders/7"
    assert not {"url.path", "url.scheme", "user_agent.original"} & set(attributes)


@pytest.mark.parametrize("kind", [KIND_SERVER, KIND_CLIENT])
def test_queries_never_leave(kind: int) -> None:
    assert b"secret" not in b"".join(value for value in request(kind).values() if isinstance(value, bytes))


@pytest.mark.parametrize(
    ("authority", "scheme", "address", "port"),
    [
        (b"orders", b"http", b"orders", 80),
        (b"orders", b"https", b"orders", 443),
        (b"[::1]:8080", b"http", b"::1", 8080),
        (b"[::1]", b"http", b"::1", 80),
        (b"orders:", b"http", b"orders:", 80),
        (b"orders:x", b"http", b"orders:x", 80),
        (b"", b"http", b"", 80),
    ],
)
def test_the_authority_gives_address_and_port(
    authority: bytes, scheme: bytes, address: bytes, port: int
) -> None:
    attributes = request(authority=authority, scheme=scheme)
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)


def test_an_unknown_method_is_other_and_keeps_its_original() -> None:
    attributes = request(method=b"BREW")
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes["http.request.method_original"] == b"BREW"
    assert span_name(b"BREW", b"/", grpc=False) == "HTTP"


def test_grpc_adds_system_service_and_method() -> None:
    attributes = request(method=b"POST", path=b"/demo.v1.Greeter/SayHello", grpc=True)
    assert attributes["rpc.system"] == "grpc"
    assert attributes["rpc.service"] == b"demo.v1.Greeter"
    assert attributes["rpc.method"] == b"SayHello"


def test_names_are_of_low_cardinality() -> None:
    assert span_name(b"GET", b"/orders/7", grpc=False) == "GET"
    assert span_name(b"GET", b"/orders/7", grpc=False, route="orders") == "GET orders"
    assert span_name(b"POST", b"/demo.v1.Greeter/SayHello", grpc=True) == "demo.v1.Greeter/SayHello"


def test_results_name_status_error_and_what_the_mesh_did() -> None:
    assert result_attributes(200, None) == ((http_attributes.HTTP_RESPONSE_STATUS_CODE, 200),)
    assert dict(result_attributes(503, None, "", "UF,URX", 2, "connect-failure")) == {
        "http.response.status_code": 503,
        error_attributes.ERROR_TYPE: "503",
        http_attributes.HTTP_REQUEST_RESEND_COUNT: 2,
        "pilotfish.retry.reason": "connect-failure",
        "pilotfish.response_flags": "UF,URX",
    }
    assert dict(result_attributes(0, None, "timeout")) == {"error.type": "timeout"}
    assert dict(result_attributes(200, 14)) == {
        "http.response.status_code": 200,
        "rpc.grpc.status_code": 14,
        "error.type": "UNAVAILABLE",
    }
    assert dict(result_attributes(200, 0))["rpc.grpc.status_code"] == 0


@pytest.mark.parametrize(
    ("status", "grpc_status", "error", "server", "client"),
    [
        (200, None, "", False, False),
        (302, None, "", False, False),
        (404, None, "", False, True),
        (500, None, "", True, True),
        (0, None, "timeout", True, True),
        (200, 0, "", False, False),
        (200, 5, "", False, True),
        (200, 1, "", False, True),
        (200, 2, "", True, True),
        (200, 4, "", True, True),
        (200, 12, "", True, True),
        (200, 13, "", True, True),
        (200, 14, "", True, True),
        (200, 15, "", True, True),
        (200, 16, "", False, True),
    ],
)
def test_a_span_is_an_error_for_its_own_side(
    status: int, grpc_status: int | None, error: str, server: bool, client: bool
) -> None:
    for kind, failed in ((KIND_SERVER, server), (KIND_CLIENT, client)):
        code, message = span_status(kind, status, grpc_status, error)
        assert code == (STATUS_ERROR if failed else STATUS_UNSET)
        assert message == error


def test_mesh_attributes_leave_out_what_is_not_known() -> None:
    assert mesh_attributes("r", "c", "10.0.0.1:80").pairs == (
        ("pilotfish.route", "r"),
        ("pilotfish.cluster", "c"),
        ("pilotfish.endpoint", "10.0.0.1:80"),
    )
    assert mesh_attributes("", "c").pairs == (("pilotfish.cluster", "c"),)
