"""What keeps a large cluster cheap: one mesh for all that is read at the start, and nothing kept that it does
not need. `benchmarks/kube_scale.py` measures seconds and megabytes."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from benchmarks import kube_scale_objects
from benchmarks.kube_scale_objects import fill
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.registry import MeshChange, Registry
from control_plane.sources.kubernetes import KubernetesSource
from tests.support.kube_api import KubeApi

SERVICES, PODS, ENDPOINTS = 100, 500, 1000
POD_BYTES = 64_000
"""An endpoint whose Pod were kept as it came would need half of that."""
MOST_BYTES = 18_000
"""For an endpoint and all that belongs to it: ten times what it is."""
OF_CONNECTIONS = [tracemalloc.Filter(False, f"*/{package}/*") for package in ("aiohttp", "asyncio")]
"""Most of these are the API server's, which runs here too."""


async def read(api: KubeApi) -> tuple[list[MeshChange], int, int]:
    """What the registry was told of the cluster, how many meshes were made, and the bytes that stayed."""
    client, registry, stop = KubeClient(from_kubeconfig(api.kubeconfig())), Registry(), asyncio.Event()
    changes: list[MeshChange] = []
    registry.subscribe(changes.append)
    source = KubernetesSource(client, registry.replace, random=Random(1))
    tracemalloc.start()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(source.run(stop))
            while not (source.published and api.watches == len(source.state.stores)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            gc.collect()
            kept = tracemalloc.take_snapshot().filter_traces(OF_CONNECTIONS)
            stop.set()
    finally:
        tracemalloc.stop()
        await client.close()
    return changes, source.published, sum(found.size for found in kept.statistics("filename"))


def test_a_large_cluster_is_published_once_and_kept_without_what_the_mesh_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_scale_objects, "POD_BYTES", POD_BYTES)

    async def main() -> None:
        api = KubeApi(tmp_path)
        fill(api, SERVICES, PODS, ENDPOINTS)
        api.max_page = 100
        async with asyncio.timeout(60), api:
            changes, published, kept = await read(api)
        assert published == 1
        [change] = changes
        views = change.after.views.values()
        assert len(views) == SERVICES
        assert sum(len(item.endpoints) for view in views for item in view.slices) == ENDPOINTS
        assert kept / ENDPOINTS < MOST_BYTES

    asyncio.run(main())
