"""Which failures may be sent again: by what the peer can have processed, the method, and the policy."""

from __future__ import annotations

import pytest

from sidecar.config.resources import RetryPolicy
from sidecar.http.retry import Failure, classify, retries_failure, retries_grpc_status, retries_status
from sidecar.protocol.events import ErrorCode, Reset

DEFAULT = RetryPolicy()


def policy(*names: str, codes: frozenset[int] = frozenset()) -> RetryPolicy:
    return RetryPolicy(retry_on=frozenset(names), retriable_status_codes=codes)


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH", b"DELETE", b"CONNECT"])
@pytest.mark.parametrize("failure", [Failure.CONNECT, Failure.REFUSED, Failure.NOT_SENT])
def test_what_was_certainly_not_processed_is_sent_again_whatever_the_method(
    method: bytes, failure: Failure
) -> None:
    assert retries_failure(DEFAULT, method, failure)


@pytest.mark.parametrize("code", [ErrorCode.PROTOCOL_ERROR, ErrorCode.ENHANCE_YOUR_CALM])
def test_a_response_that_our_own_codec_refused_is_told_from_a_reset_by_the_peer(code: ErrorCode) -> None:
    assert classify(Reset(code, "", remote=False)) is Failure.MALFORMED
    assert classify(Reset(code, "", remote=True)) is Failure.RESET
    assert classify(Reset(ErrorCode.CANCEL, "connection lost", remote=False)) is Failure.RESET
    assert classify(Reset(code, "", processed=False, remote=False)) is Failure.NOT_SENT


@pytest.mark.parametrize("failure", [Failure.RESET, Failure.MALFORMED, Failure.PER_TRY_TIMEOUT])
@pytest.mark.parametrize(
    ("method", "again"),
    [
        (b"GET", True),
        (b"HEAD", True),
        (b"PUT", True),
        (b"DELETE", True),
        (b"OPTIONS", True),
        (b"POST", False),
        (b"PATCH", False),
    ],
)
def test_what_may_have_been_processed_is_sent_again_only_when_idempotent(
    failure: Failure, method: bytes, again: bool
) -> None:
    assert retries_failure(DEFAULT, method, failure) is again


def test_a_policy_that_names_nothing_retries_nothing() -> None:
    assert not any(retries_failure(policy(), b"GET", failure) for failure in Failure)


def test_what_cannot_be_written_is_never_sent_again() -> None:
    everything = (
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "refused-stream",
        "connect-failure",
    )
    assert not retries_failure(policy(*everything), b"GET", Failure.UNWRITABLE)


def test_connect_failure_alone_does_not_retry_resets() -> None:
    assert retries_failure(policy("connect-failure"), b"GET", Failure.CONNECT)
    assert not retries_failure(policy("connect-failure"), b"GET", Failure.RESET)


@pytest.mark.parametrize(
    ("reset", "failure"),
    [
        (Reset(ErrorCode.REFUSED_STREAM, "refused", processed=False), Failure.REFUSED),
        (Reset(ErrorCode.NO_ERROR, "goaway", processed=False), Failure.NOT_SENT),
        (Reset(ErrorCode.INTERNAL_ERROR, "reset"), Failure.RESET),
        (Reset(ErrorCode.CANCEL, "lost", remote=False), Failure.RESET),
        (Reset(ErrorCode.INTERNAL_ERROR, "the request has", False, False), Failure.UNWRITABLE),
        (Reset(ErrorCode.INTERNAL_ERROR, "goaway", processed=False), Failure.NOT_SENT),
    ],
)
def test_resets_are_told_apart_by_what_the_peer_can_have_done(reset: Reset, failure: Failure) -> None:
    assert classify(reset) is failure


def test_statuses_are_retried_only_when_named() -> None:
    assert not retries_status(DEFAULT, b"GET", 503)
    assert retries_status(policy("5xx"), b"GET", 500)
    assert retries_status(policy("gateway-error"), b"GET", 503)
    assert not retries_status(policy("gateway-error"), b"GET", 500)
    assert retries_status(policy("retriable-4xx"), b"GET", 409)
    assert retries_status(policy("retriable-status-codes", codes=frozenset({418})), b"GET", 418)
    assert not retries_status(policy("5xx", codes=frozenset({418})), b"GET", 418)


def test_an_unsafe_method_is_never_retried_on_a_status() -> None:
    assert not retries_status(policy("5xx", "gateway-error"), b"POST", 503)


def test_grpc_statuses_are_retried_only_when_named() -> None:
    assert retries_grpc_status(policy("unavailable"), 14)
    assert not retries_grpc_status(policy("unavailable"), 13)
    assert not retries_grpc_status(DEFAULT, 14)
    assert not retries_grpc_status(policy("unavailable"), 0)
