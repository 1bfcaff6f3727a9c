"""Replicas that go away before, during and after requests: what is sent again, where, and what is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.apps import start_app
from tests.support.clients import Answer, H2Client, fetch
from tests.support.processes import Process, eventually
from tests.support.sidecars import APP, OUTBOUND, RETRY, Pair, route


class Replicas:
    """Two replicas behind one outbound sidecar, each an application and its sidecar."""

    def __init__(self, directory: Path) -> None:
        self.pair = Pair(directory, hosts=2)
        self.apps: list[Process] = []
        routes = [
            route("/slow/", prefix_rewrite="/", timeout="0.3s", retry_policy=RETRY),
            route("/try/", prefix_rewrite="/", retry_policy={**RETRY, "per_try_timeout": "0.4s"}),
            route("/once/", prefix_rewrite="/"),
            route(
                "/try-once/",
                prefix_rewrite="/",
                retry_policy={**RETRY, "num_retries": 1, "per_try_timeout": "0.4s"},
            ),
            route(retry_policy=RETRY),
        ]
        breakers = {"thresholds": [{"max_retries": 1000}]}
        self.tree = self.pair.outbound_tree(routes, circuit_breakers=breakers)

    def start(self) -> Replicas:
        for i, host in enumerate(self.pair.hosts):
            self.apps.append(start_app(host, APP, f"app-{i}", self.pair.directory))
        self.pair.start(self.tree)
        return self

    def stop(self) -> None:
        self.pair.stop()
        for app in self.apps:
            app.stop()

    def revive(self) -> Replicas:
        """Starts what was killed again."""
        for i, host in enumerate(self.pair.hosts):
            if self.apps[i].child.poll() is not None:
                self.apps[i] = start_app(host, APP, f"app-{i}", self.pair.directory)
            if self.pair.inbound[i].child.poll() is not None:
                self.pair.inbound[i] = self.pair.run(f"inbound-{i}", self.pair.inbound_tree(host)).ready()
        return self

    def fetch(self, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
        return fetch((self.pair.host, OUTBOUND), path, method, body)

    def retries(self) -> int:
        return int(self.pair.outbound.stats("clusters", cluster="peer")["retries"])

    def timeouts(self) -> tuple[int, int]:
        """Of route `/slow/`: those that the cluster saw, and answers with 504."""
        rows = [r for r in self.pair.outbound.json("/stats")["routes"] if r["route"] == "/slow/"]
        return sum(row["timeouts"] for row in rows), sum(row["codes"].get("504", 0) for row in rows)

    def counts(self, path: str) -> list[int]:
        """How often each application was asked for it."""
        found = [fetch((host, APP), "/counts").json() for host in self.pair.hosts]
        return [int(counts.get(path, 0)) for counts in found]

    def __repr__(self) -> str:
        return f"<Replicas {self.pair!r}>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    made = Replicas(tmp_path_factory.mktemp("replicas"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def replicas(shared: Replicas) -> Replicas:
    """Both are alive when the test begins."""
    return shared.revive()


def test_a_dead_replica_is_avoided_by_every_method(replicas: Replicas) -> None:
    """Sidecar and application are gone: connecting fails, so that nothing was processed."""
    replicas.pair.inbound[0].kill()
    replicas.apps[0].kill()
    answers = [replicas.fetch("/x", m, b"body") for m in ("GET", "POST", "PUT", "PATCH") * 3]
    assert [(a.status, a.json()["replica"]) for a in answers] == [(200, "app-1")] * 12


def test_an_application_that_died_is_avoided_by_every_method(replicas: Replicas) -> None:
    """Its sidecar lives and refuses the stream, so the caller's sends it to the other replica."""
    before = replicas.retries()
    replicas.apps[0].kill()
    answers = [replicas.fetch("/y", m, b"body") for m in ("GET", "POST", "DELETE", "PATCH") * 3]
    assert [(a.status, a.json()["replica"]) for a in answers] == [(200, "app-1")] * 12
    assert replicas.retries() > before
    assert replicas.pair.inbound[0].logged(path="/y", status=503)["flags"] == "UF"


class InFlight:
    """A request that its replica `where` has, and does not answer soon."""

    def __init__(self, replicas: Replicas, method: str, path: str) -> None:
        before = replicas.counts(path.partition("?")[0])

        def arrived() -> list[int]:
            now = replicas.counts(path.partition("?")[0])
            return [n for n, (a, b) in enumerate(zip(before, now, strict=True), 1) if a != b]

        self.answers: list[Answer] = []
        self._worker = threading.Thread(target=lambda: self.answers.append(replicas.fetch(path, method, b"")))
        self._worker.start()
        self.where = eventually(arrived)[0] - 1

    def answer(self) -> Answer:
        self._worker.join(30)
        return self.answers[0]


@pytest.mark.parametrize("whole", [True, False])
def test_a_get_in_flight_when_its_replica_dies_is_sent_again(replicas: Replicas, whole: bool) -> None:
    """The sidecar with its application, or the application alone."""
    path = f"/wait?whole={whole}"
    flight = InFlight(replicas, "GET", path)
    if whole:
        replicas.pair.inbound[flight.where].kill()
    replicas.apps[flight.where].kill()
    released = fetch((replicas.pair.hosts[1 - flight.where], APP), f"/release?whole={whole}")
    assert released.status == 200
    answer = flight.answer()
    assert (answer.status, answer.headers["x-replica"]) == (200, f"app-{1 - flight.where}")
    line = replicas.pair.outbound.logged(path=path)
    assert (line["status"], line["attempts"], line["flags"]) == (200, 2, "")


@pytest.mark.parametrize("whole", [True, False])
def test_a_post_in_flight_when_its_replica_dies_is_503_and_says_why(replicas: Replicas, whole: bool) -> None:
    path = f"/hang?whole={whole}"
    flight = InFlight(replicas, "POST", path)
    if whole:
        replicas.pair.inbound[flight.where].kill()
    replicas.apps[flight.where].kill()
    answer = flight.answer()
    assert answer.status == 503
    assert b"not sent again: POST may have been processed" in answer.body
    assert replicas.pair.hosts[flight.where].encode() in answer.body
    line = replicas.pair.outbound.logged(path=path)
    assert (line["attempts"], line["details"]) == (1, answer.body.decode().strip())


def test_a_get_whose_replicas_break_off_within_a_short_response_gets_a_whole_one(replicas: Replicas) -> None:
    """Each replica closes its first connection in the middle of the body."""
    answer = replicas.fetch("/half/get")
    assert (answer.status, answer.body) == (200, b"whole\n")
    assert replicas.pair.outbound.logged(path="/half/get")["attempts"] == 3
    assert sum(replicas.counts("/half/get")) == 3


def test_a_post_whose_response_breaks_off_is_503_and_says_why(replicas: Replicas) -> None:
    answer = replicas.fetch("/half/post", "POST", b"body")
    assert answer.status == 503
    assert b"not sent again: POST may have been processed" in answer.body
    assert sum(replicas.counts("/half/post")) == 1


def test_a_retry_goes_to_a_replica_that_was_not_tried(replicas: Replicas) -> None:
    """Nobody ever answers in time: with one retry each request is seen by both replicas, once."""
    before = replicas.counts("/hang")
    for _ in range(2):
        assert replicas.fetch("/try-once/hang").status == 504
    eventually(lambda: replicas.counts("/hang") == [n + 2 for n in before])


def test_a_try_that_takes_too_long_is_made_elsewhere_and_its_end_is_504(replicas: Replicas) -> None:
    answer = replicas.fetch("/try/hang")
    assert answer.status == 504
    assert answer.body.count(b"within 0.4 s (per-try timeout)") == 4  # the last, and each of three attempts
    line = replicas.pair.outbound.logged(path="/try/hang", method="GET")
    assert (line["status"], line["attempts"], line["flags"]) == (504, 3, "UT,URX")


def test_a_post_that_takes_too_long_is_not_tried_again(replicas: Replicas) -> None:
    answer = replicas.fetch("/try/hang", "POST", b"x")
    assert answer.status == 504
    assert b"not sent again: POST may have been processed" in answer.body


def test_the_route_s_timeout_covers_all_attempts(replicas: Replicas) -> None:
    before = replicas.timeouts()
    answer = replicas.fetch("/slow/hang")
    assert answer.status == 504
    assert b"no response from" in answer.body
    assert b"within 0.3 s (timeout of route /slow/)" in answer.body
    line = replicas.pair.outbound.logged(path="/slow/hang")
    assert (line["flags"], line["attempts"]) == ("UT", 1)
    assert replicas.timeouts() == tuple(count + 1 for count in before)


def test_grpc_calls_get_their_status_in_a_trailers_only_response(replicas: Replicas) -> None:
    """The applications take connections and say nothing."""
    for app in replicas.apps:
        app.kill()
    with ExitStack() as silent, H2Client((replicas.pair.host, OUTBOUND)) as client:
        for host in replicas.pair.hosts:
            silent.enter_context(socket.create_server((host, APP)))
        answer = client.wait(
            client.send("/slow/hang", "POST", headers=[("content-type", "application/grpc")])
        )
    assert (answer.status, answer.body, answer.trailers) == (200, b"", {})
    assert answer.headers["grpc-status"] == "4"
    assert "within 0.3 s" in answer.headers["grpc-message"]


def test_without_a_retry_policy_nothing_is_sent_again(replicas: Replicas) -> None:
    before = replicas.retries()
    assert replicas.fetch("/once/status/503").status == 503
    assert replicas.retries() == before


def test_a_body_that_was_too_large_to_keep_is_not_sent_again(replicas: Replicas) -> None:
    """64 KiB are kept. The application reads nothing, so the rest is on its way when its sidecar dies."""
    with H2Client((replicas.pair.host, OUTBOUND)) as client:
        stream = client.send("/stall", "PUT", end=False)
        client.data(stream, b"x" * 200_000)
        where = eventually(lambda: [n for n, c in enumerate(replicas.counts("/stall"), 1) if c])[0] - 1
        replicas.pair.inbound[where].kill()
        answer = client.wait(stream)
    assert answer.status == 503
    assert b"not sent again: the body that was sent is not kept" in answer.body


def test_retries_have_a_budget(tmp_path: Path) -> None:
    """Both replicas lose their application: 20 % of what flows may be retried, and ten a second at least."""
    made = Replicas(tmp_path)
    del made.tree["static_resources"]["clusters"][0]["circuit_breakers"]
    try:
        made.start()
        for app in made.apps:
            app.kill()
        with H2Client((made.pair.host, OUTBOUND)) as client:
            streams = [client.send("/x", "POST") for _ in range(300)]
            answers = [client.wait(stream) for stream in streams]
        assert {answer.status for answer in answers} == {503}
        assert any(b"the retry budget of the cluster is spent" in answer.body for answer in answers)
        stats = made.pair.outbound.stats("clusters", cluster="peer")
        assert 60 <= stats["retries"] <= 60 + 10 * 30
        assert stats["retry_overflow"] > 0
    finally:
        made.stop()
