"""Local errors in the dialect of the request."""

from __future__ import annotations

import pytest

from sidecar.http.local_reply import LocalReply, is_grpc, render


def test_plain_requests_get_the_status_and_a_line_of_text() -> None:
    head, body = render(LocalReply(503, "UH", "no endpoint"), grpc=False)
    assert head.status == 503
    assert head.get(b"content-length") == b"12"
    assert body == b"no endpoint\n"


@pytest.mark.parametrize(
    ("status", "grpc"), [(503, b"14"), (504, b"4"), (404, b"12"), (431, b"8"), (403, b"7"), (418, b"2")]
)
def test_grpc_requests_get_a_trailers_only_response(status: int, grpc: bytes) -> None:
    head, body = render(LocalReply(status, "", "what happened"), grpc=True)
    assert (head.status, head.get(b"grpc-status"), body) == (200, grpc, b"")
    assert head.get(b"content-type") == b"application/grpc"


def test_a_grpc_message_is_percent_encoded_where_it_must_be() -> None:
    head, _ = render(LocalReply(503, "", "100 % of \n é"), grpc=True)
    assert head.get(b"grpc-message") == b"100 %25 of %0A %C3%A9"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
        (None, False),
    ],
)
def test_grpc_is_told_by_content_type_and_grpc_web_is_not_grpc(
    content_type: bytes | None, expected: bool
) -> None:
    assert is_grpc(content_type) is expected
