"""`python -m benchmarks.kube_scale`: what a control plane needs to serve a large cluster, and how fast it is.

Runs one in front of an API server of the tests' own, with objects of the size that they have in a cluster.
Prints seconds from the start of the process to ready and to the first answer to a client, resident memory
then and at its peak, how fast and at what cost endpoints that change reach a client; and with `--sidecars`,
what each connected sidecar needs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks.kube_scale_clients import CALLED, Client, canonical, connected
from benchmarks.kube_scale_objects import POD_BYTES, fill, slice_of
from benchmarks.processes import leave_on_sigterm
from control_plane.xds.types import ENDPOINTS
from tests.support.kube_api import KubeApi


class Plane:
    """The control plane's process."""

    def __init__(self) -> None:
        self.port = self.status_port = 0
        self.pid = 0

    async def run(self, kubeconfig: Path) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control_plane", "--kubeconfig", str(kubeconfig)),
            *("--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", "--push-quiet", "100ms"),
            stderr=asyncio.subprocess.PIPE,
        )
        self.pid = process.pid
        return process

    async def follow(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode().rstrip()
            if found := re.search(r"xds_port=(\d+) status=http://127.0.0.1:(\d+)", text):
                self.port, self.status_port = int(found[1]), int(found[2])
            if not re.search("xds_port|certificate signed|pushed|stream", text):
                print(f"  {text}")

    async def ready(self, process: asyncio.subprocess.Process) -> None:
        async with aiohttp.ClientSession() as client:
            while True:
                if self.status_port:
                    async with client.get(f"http://127.0.0.1:{self.status_port}/ready") as response:
                        if response.status == 200:
                            return
                if process.returncode is not None:
                    raise RuntimeError(f"the control plane ended with status {process.returncode}")
                await asyncio.sleep(0.02)

    def memory(self) -> tuple[float, float]:
        """Resident now and at the peak, in MB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        now, peak = (re.search(rf"{name}:\s+(\d+)", text) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert peak is not None
        return int(now[1]) / 1024, int(peak[1]) / 1024

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def churn(api: KubeApi, plane: Plane, client: Client, services: int) -> None:
    """One service a time, then many at once."""
    delays = []
    for turn in range(20):
        began = time.perf_counter()
        api.put(slice_of(turn, [turn], ready=bool(turn % 2)))
        await client.push()
        delays.append(time.perf_counter() - began)
    said("one endpoint to a client", f"{median(delays) * 1000:.0f} ms, median of 20 (100 ms of it debounce)")
    before, began = plane.cpu(), time.perf_counter()

    async def changes() -> None:
        for number in range(1000):
            api.put(slice_of(100 + number % max(1, services - 100), [number], ready=bool(number % 2)))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(changes())
        while not task.done():
            try:
                async with asyncio.timeout(1.0):
                    await client.push()
            except TimeoutError:
                break
    used = plane.cpu() - before
    said("100 changes a second", f"{used / (time.perf_counter() - began) * 100:.0f} % of one core")


async def crowd(api: KubeApi, plane: Plane, sidecars: int, services: int) -> None:
    """What so many sidecars cost when they connect, and while they stay."""
    before, cpu, began = plane.memory()[0], plane.cpu(), time.perf_counter()
    async with connected(api, plane.port, sidecars, services) as clients:
        took, used = time.perf_counter() - began, plane.cpu() - cpu
        said(
            f"{sidecars} sidecars connected", f"in {took:.0f} s, {used / sidecars * 1000:.1f} ms of CPU each"
        )
        now, peak = plane.memory()
        each = (now - before) / sidecars * 1024
        said("resident memory now, peak", f"{now:.0f} MB, {peak:.0f} MB: {each:.0f} KB a sidecar")
        began = time.perf_counter()
        api.put(slice_of(0, [0, services]))
        told = [client for client in clients if -client.pod % services < CALLED]
        await asyncio.gather(*(client.push() for client in told))
        said(f"one endpoint to {len(told)} of them", f"{(time.perf_counter() - began) * 1000:.0f} ms")


def said(what: str, value: str) -> None:
    print(f"{what:30}{value}", flush=True)


async def measure(given: argparse.Namespace) -> None:
    services = given.services
    with tempfile.TemporaryDirectory() as folder:
        api = KubeApi(Path(folder))
        fill(api, services, given.pods, given.endpoints)
        total = sum(len(item.get("endpoints", ())) for item in api.objects.values())
        print(f"{services} Services and routes, {given.pods} Pods of {POD_BYTES} bytes, {total} endpoints")
        async with api:
            plane = Plane()
            began = time.perf_counter()
            process = await plane.run(api.kubeconfig())
            async with asyncio.TaskGroup() as group:
                group.create_task(plane.follow(process))
                await plane.ready(process)
                said("ready after", f"{time.perf_counter() - began:.1f} s")
                client = Client(api, plane.port, 0, services)
                await client.subscribe(ENDPOINTS, [canonical(number) for number in range(services)])
                _, names = await client.push()
                assert len(names) == services
                said("first push after", f"{time.perf_counter() - began:.1f} s")
                said("resident memory now, peak", "{:.0f} MB, {:.0f} MB".format(*plane.memory()))
                while api.watches < 8 or len(api.seen("PATCH", "/status")) < services:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                said("status of all routes after", f"{time.perf_counter() - began:.1f} s")
                await churn(api, plane, client, services)
                await client.close()
                said("resident memory now, peak", "{:.0f} MB, {:.0f} MB".format(*plane.memory()))
                if given.sidecars:
                    await crowd(api, plane, given.sidecars, services)
                process.terminate()
                await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--endpoints", type=int, default=10000)
    parser.add_argument("--sidecars", type=int, default=0, help="connected at the end, at most the pods")
    settings = parser.parse_args()
    leave_on_sigterm()
    asyncio.run(measure(settings))


if __name__ == "__main__":
    main()
