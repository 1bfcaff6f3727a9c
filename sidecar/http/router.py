"""The end of the filter chain: picks the cluster, sends the request, and alone times out and retries.

One `RouterRequest` a request, owned by its exchange. Driven by callbacks; the only timers are the route's
time-out, the per-try time-out, the retry back-off and that of a held response. It never answers by itself:
it tells the exchange to.

Body bytes. Until an attempt has a stream, and while the request may have to be sent again, the body is kept
(at most `KEPT_BODY_LIMIT`, after which the request can no longer be retried). Credit goes back to the
downstream once for each byte, when the first attempt to get that far has accepted it.

Expect: 100-continue. The application decides, and each one anew: where the caller was told to continue, the
next attempt holds the body until its own 100, and for ever when it is answered without.

Time. The route's time-out and the per-try time-out begin when the request has come in whole, as Envoy's do:
a stream that the client keeps open has no end that could be late. What a gRPC client allows counts from the
arrival of the head, also while no route is known yet.

Callbacks may come from inside a call: `acquire` may answer at once, and a `send` may find the stream dead.
An attempt that has `ended` is therefore left alone wherever such a call has been made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.config.matcher import CompiledRoutes
from sidecar.http.attempt import Attempt
from sidecar.http.direct import direct_reply
from sidecar.http.forwarding import rewrite_response, strip
from sidecar.http.grpc_timeout import format_grpc_timeout, grpc_deadline
from sidecar.http.held_response import HeldResponse, is_short
from sidecar.http.local_reply import LocalReply
from sidecar.http.plan import Plan, Target, is_grpc_request, plan_for, stats_for
from sidecar.http.retry import Failure, classify, retries_failure, retries_grpc_status, retries_status
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream

if TYPE_CHECKING:
    from sidecar.http.context import TimerHandle
    from sidecar.http.exchange import Exchange
    from sidecar.runtime.timeouts import Timeouts
    from sidecar.upstream.cluster import Cluster
    from sidecar.upstream.endpoint import Endpoint

KEPT_BODY_LIMIT = 65536
_AT_ONCE = 0.001
"""Seconds from a request's arrival to its route within which time-outs keep their order."""
_STATUS = {Failure.PER_TRY_TIMEOUT: 504, Failure.MALFORMED: 502, Failure.UNWRITABLE: 400}
_FLAGS = {Failure.MALFORMED: "UPE", Failure.UNWRITABLE: "DPE"}


class RouterRequest:
    """The upstream half of an exchange."""

    __slots__ = (
        "attempt",
        "attempts",
        "body_ended",
        "cluster",
        "consumed",
        "continued",
        "deadline",
        "exchange",
        "holding",
        "intact",
        "kept",
        "kept_size",
        "plan",
        "response_started",
        "retries",
        "retrying",
        "route_name",
        "stop_waiting",
        "target",
        "timeout",
        "timeouts",
        "timer",
        "trailers",
        "whole_at",
    )

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.plan: Plan | None = None
        self.target: Target | None = None
        self.cluster: Cluster | None = None
        self.attempt: Attempt | None = None
        self.attempts: list[Attempt] = []
        self.retries = 0
        self.retrying = False
        """A retry is under way, and holds a place in the cluster's retry budget."""
        self.body_ended = False
        self.kept: list[bytes] = []
        self.kept_size = 0
        self.intact = True
        """Every body byte so far is in `kept`, so the request can be sent again from the start."""
        self.trailers: tuple[Field, ...] | None = None
        self.continued = False
        """The caller expected a 100 and was sent one."""
        self.holding = False
        """The attempt is a retry after that, and has not been told to continue."""
        self.consumed = 0
        self.response_started = False
        self.route_name = "unknown"
        self.whole_at = 0.0
        """When the body ended, if that was before its route was known."""
        self.timeout = 0.0
        """Seconds that the route allows, 0.0 without a limit."""
        self.deadline = 0.0
        """When a gRPC caller's own limit is over, 0.0 without one."""
        self.timer: TimerHandle | None = None
        self.timeouts: Timeouts | None = None
        """Where the route's time-out is waited for; else it is `timer`."""
        self.stop_waiting: Callable[[], None] | None = None

    @property
    def grpc(self) -> bool:
        return is_grpc_request(self.exchange.head) if self.plan is None else self.plan.grpc

    # --- routing ---------------------------------------------------------------------------------

    def start(self, end_stream: bool) -> None:
        self.body_ended = end_stream
        exchange = self.exchange
        source = exchange.context.routes
        routes = source.current(exchange.head)
        if routes is None:
            stop = source.wait(exchange.head, self._on_routes)
            # The answer may have come at once, and what is waited for now be something else.
            if self.plan is None and not exchange.done:
                self.stop_waiting = stop
                asked = grpc_deadline(0.0, exchange.head) if self.grpc else None
                if asked:
                    self.timer = exchange.context.clock.call_later(asked, self._on_no_routes, asked)
        else:
            self._route(routes)

    def _on_no_routes(self, seconds: float) -> None:
        authority = self.exchange.head.authority.decode("latin-1")
        text = f"no route for {authority} was known within {seconds:g} s (grpc-timeout)"
        stats = stats_for(self.exchange.context, self.exchange.downstream, self.route_name)
        stats.timeouts += 1
        self.cancel(text)
        self.exchange.reply(LocalReply(504, "UT", text))

    def _on_routes(self, routes: CompiledRoutes | str) -> None:
        self.stop_waiting = None
        self._cancel_timers()
        if isinstance(routes, str):
            self.exchange.reply(LocalReply(503, "NC", routes))
        else:
            self._route(routes)

    def _route(self, routes: CompiledRoutes) -> None:
        exchange = self.exchange
        context = exchange.context
        plan = plan_for(context, exchange.downstream, exchange.head, routes)
        if not isinstance(plan, Plan):
            if plan is not None:
                self.route_name = plan.name
            exchange.reply(direct_reply(exchange.head, plan, routes))
            return
        self.plan = plan
        self.route_name = plan.route.name
        target = plan.targets[0] if len(plan.targets) == 1 else self._pick_target(plan)
        self.target = target
        cluster = context.clusters.get(target.cluster)
        if cluster is None:
            text = f"route {plan.route.name} sends to cluster {target.cluster}, which is not configured"
            exchange.reply(LocalReply(503, "NC", text))
            return
        self.cluster = cluster
        now = context.now()
        cluster.retry_budget.on_request(now)
        action = plan.route.action
        assert action is not None
        self.timeout = action.timeout
        if plan.grpc and action.grpc_timeout_max is not None:
            asked = grpc_deadline(action.grpc_timeout_max, exchange.head)
            if asked is not None:
                self.timeout = asked
                self.deadline = exchange.started + asked if asked else 0.0
        if self.timeout and (self.deadline or self.body_ended):
            self._arm_timeout(exchange.started if self.deadline else self.whole_at or exchange.started, now)
        self._try("")

    def _arm_timeout(self, began: float, now: float) -> None:
        context = self.exchange.context
        if self.deadline or now - began > _AT_ONCE:
            delay = max(began + self.timeout - now, 0.0)
            self.timer = context.clock.call_later(delay, self.on_timeout, self.timeout)
        else:
            self.timeouts = context.timeouts_of(self.timeout)
            self.timeouts.begin(self, now)

    def _pick_target(self, plan: Plan) -> Target:
        point = self.exchange.context.random.random() * plan.total_weight
        for target in plan.targets:
            point -= target.weight
            if point < 0:
                return target
        return plan.targets[-1]

    # --- attempts --------------------------------------------------------------------------------

    def _try(self, reason: str, endpoint: Endpoint | None = None) -> None:
        self.stop_waiting = None
        cluster = self.cluster
        assert cluster is not None
        if endpoint is None:
            endpoint = cluster.pick([a.endpoint for a in self.attempts] if self.attempts else ())
        if endpoint is None:
            text = f"no endpoint of cluster {cluster.name} can take requests: {cluster.why_none()}"
            self._unavailable(LocalReply(503, "UH", text))
            return
        if not cluster.begin(endpoint):
            limit = cluster.config.circuit_breakers.max_requests
            text = f"cluster {cluster.name} has reached its limit of {limit} concurrent requests"
            self._unavailable(LocalReply(503, "UO", text))
            return
        self._start(Attempt(self, endpoint, len(self.attempts) + 1, reason, self.exchange.context.now()))

    def _start(self, attempt: Attempt) -> None:
        exchange = self.exchange
        plan = self.plan
        assert plan is not None
        self.attempt = attempt
        self.attempts.append(attempt)
        if exchange.trace.sampled:
            attempt.span_id = exchange.trace.new_span_id()
            attempt.start_ns = exchange.context.tracer.now_ns()
        policy = plan.route.retry_policy
        if policy is not None and policy.per_try_timeout and self.body_ended:
            self._arm_try_timeout(attempt, policy.per_try_timeout)
        if plan.tunnel:
            attempt.endpoint.acquire_tcp(attempt)
        elif plan.grpc:
            attempt.endpoint.acquire_grpc(attempt)
        else:
            attempt.endpoint.acquire(attempt)

    def _arm_try_timeout(self, attempt: Attempt, seconds: float) -> None:
        attempt.timer = self.exchange.context.clock.call_later(
            seconds, self._on_try_timeout, attempt, seconds
        )

    def on_stream(self, attempt: Attempt, stream: Stream) -> None:
        """The attempt has a stream on a ready connection: send what there is of the request."""
        plan = self.plan
        assert plan is not None
        kept = self.kept
        if plan.tunnel:
            self.on_response(attempt, ResponseHead(200), False)
        else:
            # A handshake says nothing of how fast the endpoint answers, and would keep a new one idle.
            attempt.started = self.exchange.context.now()
            stream.send_request(
                self._upstream_head(attempt), self.body_ended and not kept and self.trailers is None
            )
        if (kept or self.trailers is not None) and not self.holding:
            self._send_kept(attempt, stream, kept)

    def _send_kept(self, attempt: Attempt, stream: Stream, kept: list[bytes]) -> None:
        trailers = self.trailers
        last = len(kept) - 1
        for i, data in enumerate(kept):
            if attempt.ended:
                return
            ends = i == last and self.body_ended and trailers is None
            self.on_request_sent(attempt, stream.send_data(data, ends))
        if attempt.ended:
            return
        if not self._may_resend() or self.kept_size > KEPT_BODY_LIMIT:
            self._forget_body()
        self.exchange.count_held()
        if trailers is not None:
            stream.send_trailers(trailers)

    def _upstream_head(self, attempt: Attempt) -> RequestHead:
        exchange = self.exchange
        target = self.target
        assert target is not None
        assert self.plan is not None
        fresh: tuple[Field, ...] = exchange.trace.outgoing(attempt.span_id)
        head = exchange.head
        if head.fresh and not self.plan.merge_fresh:
            fresh = strip(head.fresh, exchange.downstream.keep_client_cert) + fresh
        if self.deadline and self.plan.grpc:
            left = self.deadline - exchange.context.now()
            fresh = (
                *(f for f in fresh if f[0] != b"grpc-timeout"),
                (b"grpc-timeout", format_grpc_timeout(left)),
            )
        return target.head.vary(self.plan.route.rewrite_path(head.path), fresh)

    def _may_resend(self) -> bool:
        policy = self.plan.route.retry_policy if self.plan is not None else None
        return policy is not None and self.retries < policy.num_retries and not self.response_started

    def _forget_body(self) -> None:
        if self.kept:
            self.kept = []
            self.kept_size = 0
            self.intact = False

    # --- request body ----------------------------------------------------------------------------

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        attempt = self.attempt
        stream = attempt.stream if attempt is not None and not self.holding else None
        if stream is None or (self.intact and self._may_resend()):
            self.kept.append(data)
            self.kept_size += len(data)
            if stream is not None and self.kept_size > KEPT_BODY_LIMIT:
                self._forget_body()
        elif data:
            self.intact = False
        if end_stream:
            self._on_request_end()
        if stream is not None:
            assert attempt is not None
            self.on_request_sent(attempt, stream.send_data(data, end_stream))

    def on_request_trailers(self, fields: tuple[Field, ...]) -> None:
        self.trailers = fields
        self._on_request_end()
        attempt = self.attempt
        if attempt is not None and attempt.stream is not None and not self.holding:
            attempt.stream.send_trailers(fields)

    def _on_request_end(self) -> None:
        self.body_ended = True
        plan = self.plan
        if plan is None:
            self.whole_at = self.exchange.context.now()
            return
        if self.response_started:
            return
        if self.timeout and self.timer is None and self.timeouts is None:
            now = self.exchange.context.now()
            self._arm_timeout(now, now)
        policy = plan.route.retry_policy
        attempt = self.attempt
        if policy is not None and policy.per_try_timeout and attempt is not None and not attempt.ended:
            self._arm_try_timeout(attempt, policy.per_try_timeout)

    def on_request_sent(self, attempt: Attempt, n: int) -> None:
        """`n` more body bytes were accepted by the attempt's connection."""
        if attempt.ended:
            return  # who has ended it has given everything back
        attempt.accepted += n
        ahead = attempt.accepted - self.consumed
        if ahead > 0:
            self.consumed += ahead
            exchange = self.exchange
            exchange.stream.consume(ahead)
            if exchange.held:
                exchange.count_held()

    # --- response --------------------------------------------------------------------------------

    def on_informational(self, attempt: Attempt, head: ResponseHead) -> None:
        if head.status != 100 or self.exchange.head.get(b"expect") is None:
            self.exchange.send_informational(head)
        elif not self.holding:
            self.continued = True
            self.exchange.send_informational(head)
        else:
            self.holding = False
            assert attempt.stream is not None
            self._send_kept(attempt, attempt.stream, self.kept)

    def on_response(self, attempt: Attempt, head: ResponseHead, end_stream: bool) -> None:
        exchange = self.exchange
        attempt.status = head.status
        attempt.latency = exchange.context.now() - attempt.started
        plan = self.plan
        assert plan is not None
        grpc_status = _grpc_status(head.get(b"grpc-status")) if plan.grpc and end_stream else None
        if plan.route.retry_policy is not None and self._retry_response(
            attempt, head.status, grpc_status, end_stream
        ):
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
        stream = attempt.stream
        if (
            stream is not None
            and stream.incomplete
            and is_short(head)
            and self.body_ended
            and attempt.accepted >= exchange.bytes_in
        ):
            attempt.held = HeldResponse(attempt, head)
            exchange.tell_filters()
        else:
            self.begin_response(attempt, head, end_stream, grpc_status)

    def begin_response(
        self, attempt: Attempt, head: ResponseHead, end_stream: bool = False, grpc_status: int | None = None
    ) -> None:
        """Pass on the head: from now on there is no other attempt."""
        target = self.target
        assert target is not None
        self.response_started = True
        if self.kept:
            self._forget_body()
        if end_stream:
            self._response_complete(attempt, grpc_status)
        elif self._opens_tunnel(attempt):
            self._cancel_timers()  # they were for the answer; a tunnel lasts
        self.exchange.send_response(rewrite_response(head, target.response_operations), end_stream)

    def on_response_data(self, attempt: Attempt, data: bytes, end_stream: bool) -> int:
        """Returns how many bytes the downstream accepted at once."""
        if end_stream:
            self._response_complete(attempt, None)
        return self.exchange.send_data(data, end_stream)

    def on_response_trailers(self, attempt: Attempt, fields: tuple[Field, ...]) -> None:
        grpc_status = None
        if self.grpc:
            grpc_status = _grpc_status(next((v for n, v in fields if n == b"grpc-status"), None))
        self._response_complete(attempt, grpc_status)
        self.exchange.send_trailers(fields)

    def on_response_sent(self, n: int) -> None:
        """The downstream accepted `n` bytes that it had kept."""
        attempt = self.attempt
        if attempt is not None and attempt.stream is not None:
            attempt.stream.consume(n)

    def _opens_tunnel(self, attempt: Attempt) -> bool:
        return self.exchange.head.method == b"CONNECT" and 200 <= attempt.status < 300

    def _response_complete(self, attempt: Attempt, grpc_status: int | None) -> None:
        self.exchange.grpc_status = grpc_status
        if not self.body_ended and self._opens_tunnel(attempt):
            return  # the other half of the tunnel is still open; `finish` follows
        self._drop_upload(attempt)
        self._end_attempt(attempt, attempt.status >= 500 or grpc_status == 14)
        self._cancel_timers()

    def _drop_upload(self, attempt: Attempt) -> None:
        """The response is complete or not wanted: what is left of the request need not go."""
        stream = attempt.stream
        if stream is not None and (not self.body_ended or attempt.accepted < self.exchange.bytes_in):
            attempt.stream = None
            stream.reset(ErrorCode.NO_ERROR)

    def _end_attempt(self, attempt: Attempt, failed: bool) -> None:
        """Count it out of its cluster, once."""
        if attempt.ended:
            return
        attempt.ended = True
        attempt.stream = None
        if attempt.held is not None:
            attempt.take_held()
            attempt.status = 0  # nobody has heard of it
        if attempt.timer is not None:
            attempt.timer.cancel()
        if self.exchange.trace.sampled:
            attempt.end_ns = self.exchange.context.tracer.now_ns()
        cluster = self.cluster
        assert cluster is not None
        cluster.finish(attempt.endpoint, attempt.latency, failed)
        self._release_retry()

    def _release_retry(self) -> None:
        if self.retrying:
            self.retrying = False
            assert self.cluster is not None
            self.cluster.retry_budget.release()

    # --- failure ---------------------------------------------------------------------------------

    def on_connect_failure(self, attempt: Attempt, reason: str, overflow: bool) -> None:
        if attempt.ended:
            return
        attempt.outcome = reason
        self._end_attempt(attempt, not overflow)
        if overflow:
            self._unavailable(LocalReply(503, "UO", reason))
        else:
            self._failed(Failure.CONNECT, "UF", reason)

    def on_upstream_reset(self, attempt: Attempt, reset: Reset) -> None:
        if attempt.ended:
            return  # its response was complete before the last of the request had left
        assert self.cluster is not None
        where = f"{attempt.endpoint.name} ({attempt.endpoint.address})"
        attempt.outcome = reset.reason
        # Who has begun to answer has processed the request, whatever it says afterwards.
        failure = classify(reset if attempt.held is None else replace(reset, processed=True))
        if failure is Failure.UNWRITABLE:
            self._end_attempt(attempt, False)
            self._failed(failure, _FLAGS[failure], f"not sent to upstream {where}: {reset.reason}")
            return
        self.cluster.stats.resets += 1
        text = f"upstream {where} ended the stream: {reset.reason}"
        if self.response_started:
            self._end_attempt(attempt, True)
            self._cancel_timers()
            self.exchange.reply(LocalReply(502, "UR", text))
            return
        self._end_attempt(attempt, failure is not Failure.NOT_SENT)
        self._failed(failure, _FLAGS.get(failure) or ("UR" if reset.remote else "UC"), text)

    def _on_try_timeout(self, attempt: Attempt, seconds: float) -> None:
        where = f"{attempt.endpoint.name} ({attempt.endpoint.address})"
        text = f"no response from {where} within {seconds:g} s (per-try timeout)"
        attempt.cancel(text)
        self._end_attempt(attempt, True)
        assert self.cluster is not None
        self.cluster.stats.timeouts += 1
        self._failed(Failure.PER_TRY_TIMEOUT, "UT", text)

    def on_timeout(self, seconds: float) -> None:
        attempt = self.attempt
        where = f" from {attempt.endpoint.name} ({attempt.endpoint.address})" if attempt is not None else ""
        answering = self.response_started or (attempt is not None and attempt.held is not None)
        what = "the response did not end" if answering else f"no response{where}"
        text = f"{what} within {seconds:g} s (timeout of route {self.plan.route.name if self.plan else ''})"
        assert self.target is not None
        assert self.cluster is not None
        self.target.stats.timeouts += 1
        self.cluster.stats.timeouts += 1
        if attempt is not None and not attempt.ended and not self.response_started:
            attempt.cancel(text)
            self._end_attempt(attempt, True)
        self.cancel(text)
        self.exchange.reply(LocalReply(504, "UT", text))

    def _retry_response(
        self, attempt: Attempt, status: int, grpc_status: int | None, end_stream: bool
    ) -> bool:
        """Drop this response and try again, when the policy wants that and it can be done."""
        assert self.plan is not None
        policy = self.plan.route.retry_policy
        assert policy is not None
        method = self.exchange.head.method
        if grpc_status is not None:
            wanted = retries_grpc_status(policy, grpc_status)
            reason = f"grpc-status {grpc_status}"
        else:
            wanted = status >= 400 and retries_status(policy, method, status)
            reason = f"status {status}"
        if not wanted or not self._can_retry():
            return False
        attempt.outcome = reason
        if end_stream:
            self._drop_upload(attempt)
        elif attempt.stream is not None:
            attempt.stream.reset(ErrorCode.CANCEL)
        self._end_attempt(attempt, True)
        self._retry(reason)
        return True

    def _can_retry(self) -> bool:
        """Retries left, body still whole, budget not spent. Yes takes a place in it, for `_retry`."""
        if not self._may_resend() or not self.intact:
            return False
        assert self.cluster is not None
        if self.cluster.retry_budget.try_acquire(self.exchange.context.now()):
            return True
        self.cluster.stats.retry_overflow += 1
        return False

    def _failed(self, failure: Failure, flag: str, text: str) -> None:
        assert self.plan is not None
        policy = self.plan.route.retry_policy
        method = self.exchange.head.method
        wanted = policy is not None and retries_failure(policy, method, failure)
        if wanted and self._can_retry():
            self._retry(failure.value)
            return
        if self.retries:
            tried = "; ".join(f"{a.endpoint.name}: {a.outcome}" for a in self.attempts)
            text = f"{text} (after {len(self.attempts)} attempts: {tried})"
            flag = f"{flag},URX"
        elif policy is not None and not wanted and failure in (Failure.RESET, Failure.PER_TRY_TIMEOUT):
            text = f"{text}; not sent again: {method.decode('latin-1')} may have been processed"
        elif wanted and not self.intact:
            text = f"{text}; not sent again: the body that was sent is not kept"
        elif wanted and self._may_resend():
            text = f"{text}; not sent again: the retry budget of the cluster is spent"
        reply = LocalReply(_STATUS.get(failure, 503), flag, text)
        if failure in (Failure.CONNECT, Failure.REFUSED, Failure.NOT_SENT):
            self._unavailable(reply)
        elif failure in (Failure.MALFORMED, Failure.UNWRITABLE):
            self._cancel_timers()
            self.exchange.reply(reply)  # another try would bring the same; the caller is told what was wrong
        else:
            self._broken(reply)

    def _retry(self, reason: str) -> None:
        assert self.target is not None
        assert self.cluster is not None
        assert self.plan is not None
        policy = self.plan.route.retry_policy
        assert policy is not None
        self.retries += 1
        self.retrying = True
        self.holding = self.continued
        self.target.stats.retries += 1
        self.cluster.stats.retries += 1
        self.attempt = None
        endpoint = self.cluster.pick([a.endpoint for a in self.attempts])
        if endpoint is not None and all(a.endpoint is not endpoint for a in self.attempts):
            self._try(reason, endpoint)
            return
        context = self.exchange.context
        ceiling = min(policy.back_off_base * 2.0 ** min(self.retries - 1, 60), policy.back_off_max)
        handle = context.clock.call_later(context.random.random() * ceiling, self._try, reason)
        self.stop_waiting = handle.cancel

    def _unavailable(self, reply: LocalReply) -> None:
        self._cancel_timers()
        self._release_retry()
        self.exchange.unavailable(reply)

    def _broken(self, reply: LocalReply) -> None:
        """The request may have been processed: another sidecar decides by the method."""
        self._cancel_timers()
        exchange = self.exchange
        if exchange.context.inbound and exchange.downstream.trusted:
            exchange.refuse(ErrorCode.INTERNAL_ERROR, reply)
        else:
            exchange.reply(reply)

    # --- the end ---------------------------------------------------------------------------------

    def cancel(self, why: str = "downstream went away") -> None:
        """Stop everything that is under way for this request."""
        if self.stop_waiting is not None:
            self.stop_waiting()
            self.stop_waiting = None
        self._cancel_timers()
        self._release_retry()
        attempt = self.attempt
        if attempt is not None and not attempt.ended:
            attempt.cancel(why)
            self._end_attempt(attempt, False)

    def finish(self) -> None:
        """The exchange is over. Only a tunnel, both of whose directions have ended, still has an attempt."""
        attempt = self.attempt
        if attempt is not None and not attempt.ended:
            self._end_attempt(attempt, False)

    def release(self) -> None:
        """Let go of the exchange and the attempts: nothing is asked of this any more."""
        self.attempt = None
        self.attempts = []
        del self.exchange

    def _cancel_timers(self) -> None:
        if self.timeouts is not None:
            self.timeouts.end(self)
            self.timeouts = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def endpoint(self) -> Endpoint | None:
        """The endpoint of the last attempt."""
        return self.attempts[-1].endpoint if self.attempts else None

    def __repr__(self) -> str:
        state = "responding" if self.response_started else "waiting"
        return f"<RouterRequest {state} attempts={self.attempts!r} kept={self.kept_size}>"


def _grpc_status(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) < 5 else None
