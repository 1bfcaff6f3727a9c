"""What goes wrong during the soak, one replica at a time: each kind of end, and the way back.

A disturbance is a generator that `Disturber.tick` drives: it yields seconds to wait, or a question that is
asked until the answer is yes. The EndpointSlice follows as a cluster would have it: late.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Generator

from benchmarks.processes import START_TIMEOUT, BenchError
from benchmarks.soak_mesh import Replica, SoakMesh, kill
from benchmarks.soak_objects import State

Disturbance = Generator[float | Callable[[], bool], None, None]

NOTICED = 1.0
"""Seconds until the cluster has seen that a Pod is gone, and says so."""
RESTART = 1.0
"""Seconds more until it is started again."""
SETTLE = 0.5
"""Seconds between the end of one disturbance and the next, at least."""


def crash(mesh: SoakMesh, replica: Replica) -> Disturbance:
    """SIGKILL for the sidecar and its application; the Pod's containers are started again."""
    kill(replica.sidecar, replica.application)
    yield NOTICED
    mesh.publish(replica, State.NOT_READY)
    yield RESTART
    replica.start_application()
    replica.start_sidecar()
    yield replica.ready
    mesh.publish(replica, State.READY)


def lose_application(mesh: SoakMesh, replica: Replica) -> Disturbance:
    """SIGKILL for the application alone; the readiness probe fails a moment later."""
    kill(replica.application)
    yield NOTICED
    mesh.publish(replica, State.NOT_READY)
    yield RESTART
    replica.start_application()
    yield replica.application_ready
    mesh.publish(replica, State.READY)


def restart_application(mesh: SoakMesh, replica: Replica) -> Disturbance:
    """The same, but it is back before any probe has seen it: only ejection and retries help."""
    kill(replica.application)
    yield NOTICED
    replica.start_application()
    yield replica.application_ready


def roll(mesh: SoakMesh, replica: Replica) -> Disturbance:
    """A rolling update: SIGTERM for the sidecar, the EndpointSlice follows, the application ends last; then
    a new Pod at the same address, which is listed before it is ready."""
    replica.sidecar.send(signal.SIGTERM)
    yield 0.2
    mesh.publish(replica, State.TERMINATING)
    yield lambda: not replica.sidecar.alive
    replica.application.send(signal.SIGTERM)
    yield lambda: not replica.application.alive
    mesh.publish(replica, State.ABSENT)
    yield RESTART
    mesh.publish(replica, State.NOT_READY)
    replica.start_application()
    replica.start_sidecar()
    yield replica.ready
    mesh.publish(replica, State.READY)


def vanish(mesh: SoakMesh, replica: Replica) -> Disturbance:
    """SIGKILL for both, and the Pod is gone; the next one at its address is listed only once it is ready,
    so that callers may hear of it before its own sidecar has its listener."""
    kill(replica.sidecar, replica.application)
    yield NOTICED
    mesh.publish(replica, State.ABSENT)
    yield RESTART
    replica.start_application()
    replica.start_sidecar()
    yield replica.ready
    mesh.publish(replica, State.READY)


KINDS = {
    "crash": crash,
    "lose application": lose_application,
    "roll": roll,
    "restart application": restart_application,
    "vanish": vanish,
}
KEEPS_SIDECAR = ("lose application", "restart application")


class Disturber:
    """Begins one disturbance every `interval` seconds (later where the last still runs) and saves the
    routes again every `route_interval`. The first replica's sidecar is never stopped, so that there is
    one inbound sidecar whose memory can be followed from the beginning to the end."""

    def __init__(self, mesh: SoakMesh, interval: float, route_interval: float) -> None:
        self._mesh = mesh
        self._interval = interval
        self._route_interval = route_interval
        self._next = self._next_route = 0.0
        self._running: Disturbance | None = None
        self._wait: float | Callable[[], bool] = 0.0
        self._deadline = 0.0
        self._what = ""
        self._turn = 0
        self._replica = 0
        self.log: list[tuple[float, str]] = []
        """When each began (Unix time) and what it was."""

    @property
    def counts(self) -> Counter[str]:
        return Counter(what.partition(":")[0] for _, what in self.log)

    def start(self) -> None:
        now = time.monotonic()
        self._next = now + self._interval
        self._next_route = now + self._route_interval

    def tick(self, begin: bool) -> None:
        """Go on with what runs; with `begin`, start what is due. Raises BenchError when a replica does not
        come back."""
        now = time.monotonic()
        if self._running is not None:
            self._go_on(self._running, now)
        elif begin and now >= self._next:
            self._begin(now)
        if begin and now >= self._next_route:
            self._next_route = now + self._route_interval
            self._mesh.save_routes()
            self.log.append((time.time(), "save routes"))

    @property
    def busy(self) -> bool:
        return self._running is not None

    def _begin(self, now: float) -> None:
        self._next = now + self._interval
        kind = list(KINDS)[self._turn % len(KINDS)]
        self._turn += 1
        replicas = self._mesh.replicas
        self._replica = (self._replica + 1) % len(replicas)
        if self._replica == 0 and kind not in KEEPS_SIDECAR:
            self._replica = 1
        replica = replicas[self._replica]
        self._what = f"{kind}: {replica.name}"
        self.log.append((time.time(), self._what))
        self._running = KINDS[kind](self._mesh, replica)
        self._wait, self._deadline = 0.0, now

    def _go_on(self, running: Disturbance, now: float) -> None:
        wait = self._wait
        if isinstance(wait, float):
            if now < self._deadline:
                return
        elif not wait():
            if now > self._deadline:
                raise BenchError(f"{self._what} did not end within {START_TIMEOUT:g} s")
            return
        try:
            self._wait = next(running)
        except StopIteration:
            self._running = None
            self._next = max(self._next, now + SETTLE)
        else:
            self._deadline = now + (self._wait if isinstance(self._wait, float) else START_TIMEOUT)

    def __repr__(self) -> str:
        return f"<Disturber {self._what if self.busy else 'idle'} begun={len(self.log)}>"
