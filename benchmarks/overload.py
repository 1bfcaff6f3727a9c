"""`python -m benchmarks.overload`: what overload protection does for an application of fixed concurrency.

The application answers `WORKERS` requests at a time, each after `SLEEP` seconds; the rest queue in it. Load
comes at a constant rate, whatever is answered. Prints goodput and the latency of accepted requests at several
multiples of the application's capacity, with protection and without, and with it when the flood is there from
the start, and when callers give up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import leave_on_sigterm

WORKERS = 20
SLEEP = 0.05
CAPACITY = WORKERS / SLEEP
TYPE = "type.googleapis.com/envoy.extensions.filters"


@dataclass(frozen=True, slots=True)
class Result:
    """Times in milliseconds, of accepted requests."""

    load: float
    goodput: float
    refused: int
    given_up: int
    failed: int
    p50: float
    p99: float


async def application(host: str, port: int) -> asyncio.Server:
    """HTTP/1.1, keep-alive, bodiless requests."""
    workers = asyncio.Semaphore(WORKERS)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                async with workers:
                    await asyncio.sleep(SLEEP)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the measurement is over
        finally:
            writer.close()

    return await asyncio.start_server(serve, host, port, backlog=1024)


def bootstrap(host: str, port: int, admin: int, app_port: int, protected: bool) -> dict[str, Any]:
    """One sidecar in front of the application, plain HTTP on both sides."""
    router = {"name": "router", "typed_config": {"@type": f"{TYPE}.http.router.v3.Router"}}
    limiter = {
        "name": "adaptive_concurrency",
        "typed_config": {
            "@type": f"{TYPE}.http.adaptive_concurrency.v3.AdaptiveConcurrency",
            "gradient_controller_config": {},
        },
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}
    manager = {
        "@type": f"{TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "name": "in",
            "virtual_hosts": [{"name": "in", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [limiter, router] if protected else [router],
    }
    limits = {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000}
    return {
        "admin": {"address": _address(host, admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "traffic_direction": "INBOUND",
                    "address": _address(host, port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "app",
                    "type": "STATIC",
                    "circuit_breakers": {"thresholds": [limits]},
                    "load_assignment": {
                        "cluster_name": "app",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(host, app_port)}}]}
                        ],
                    },
                }
            ],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


class Load:
    """Requests at a constant rate over kept-alive connections; what is measured begins after `warm_up`.

    A client that has waited for `patience` seconds closes its connection.
    """

    def __init__(self, host: str, port: int, patience: float | None) -> None:
        self._address = (host, port)
        self._patience = patience
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._times: list[float] = []
        self._refused = 0
        self._given_up = 0
        self._failed = 0

    async def run(self, rate: float, warm_up: float, seconds: float) -> Result:
        self._times, self._refused, self._given_up, self._failed = [], 0, 0, 0
        begin = time.perf_counter()
        measured_from = begin + warm_up
        tasks: set[asyncio.Task[None]] = set()
        for i in range(int(rate * (warm_up + seconds))):
            due = begin + i / rate
            # Late or not, requests that were begun get their turn.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.get_running_loop().create_task(self._request(due >= measured_from))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        end = time.perf_counter()
        times = sorted(self._times)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return Result(
            rate / CAPACITY,
            len(times) / (end - measured_from),
            self._refused,
            self._given_up,
            self._failed,
            statistics.median(times) * 1000 if times else 0.0,
            times[int(len(times) * 0.99)] * 1000 if times else 0.0,
        )

    async def _request(self, measured: bool) -> None:
        begin = time.perf_counter()
        writer = None
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = self._idle.pop() if self._idle else await self._connect()
                writer.write(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0])
                await reader.readexactly(length)
        except TimeoutError:
            self._given_up += measured
            if writer is not None:
                writer.close()
            return
        except (OSError, asyncio.IncompleteReadError):
            self._failed += measured
            return
        self._idle.append((reader, writer))
        if not measured:
            return
        if b" 200 " in head[:16]:
            self._times.append(time.perf_counter() - begin)
        elif b" 503 " in head[:16] and b"retry-after" in head:
            self._refused += 1
        else:
            self._failed += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


def free_ports(host: str, count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.create_server((host, 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def measure(
    loads: tuple[float, ...],
    seconds: float,
    protected: bool,
    host: str = "127.0.0.1",
    warm_up: float = 10.0,
    patience: float | None = None,
) -> list[Result]:
    """Each load in turn, on one sidecar and one application."""
    port, admin, app_port = free_ports(host, 3)
    server = await application(host, app_port)
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(host, port, admin, app_port, protected)))
        pilotfish = str(Path(sys.executable).with_name("pilotfish"))
        options = ("--config", str(config), "--drain-deadline", "1", "--log-level", "error")
        sidecar = await asyncio.create_subprocess_exec(pilotfish, "sidecar", *options)
        load = Load(host, port, patience)
        try:
            await _accepts(host, port)
            return [await load.run(each * CAPACITY, warm_up, seconds) for each in loads]
        finally:
            await load.close()
            sidecar.terminate()
            await sidecar.wait()
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0.1)  # connections of the application end


async def _accepts(host: str, port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError(f"the sidecar does not listen on {host}:{port}")


def main() -> None:
    """Prints one table for each case, and with protection what it is judged by."""
    leave_on_sigterm()
    print(
        f"application: {WORKERS} requests at a time, {SLEEP * 1000:g} ms each: {CAPACITY:g} requests a second"
    )
    for protected in (True, False):
        results = asyncio.run(measure((0.5, 0.9, 3.0), 10.0, protected))
        show("with protection" if protected else "without", results)
        if protected:
            print(verdict(*results))
    show("from the start", asyncio.run(measure((3.0,), 10.0, True, warm_up=20.0)))
    show(
        "callers give up after 1 s", asyncio.run(measure((0.5, 3.0), 10.0, True, warm_up=20.0, patience=1.0))
    )
    show(
        "callers give up after 1 s, from the start",
        asyncio.run(measure((3.0,), 10.0, True, warm_up=20.0, patience=1.0)),
    )


def show(title: str, results: list[Result]) -> None:
    print(f"\n{title}\n  load  goodput/s  refused  given up  failed  p50 ms  p99 ms")
    for result in results:
        print(
            f"{result.load:5.1f}x  {result.goodput:9.0f}  {result.refused:7}  {result.given_up:8}"
            f"  {result.failed:6}  {result.p50:6.0f}  {result.p99:6.0f}"
        )


def verdict(calm: Result, healthy: Result, flooded: Result) -> str:
    """What must hold, as ratios."""
    peak = max(calm.goodput, healthy.goodput, flooded.goodput, CAPACITY)
    return (
        f"at {flooded.load:g}x: {flooded.goodput / peak:.1%} of the peak goodput, accepted p50 "
        f"{flooded.p50 / calm.p50:.2f} and p99 {flooded.p99 / calm.p99:.2f} times those at {calm.load:g}x; "
        f"refused at {healthy.load:g}x: {healthy.refused}"
    )


if __name__ == "__main__":
    main()
