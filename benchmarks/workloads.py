"""What is asked of the contenders: a table, and the files that the application serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BASE = "http://127.0.0.1:20001"
"""The outbound proxy's listener, as benchmarks/outbound.yaml has it."""


@dataclass(frozen=True)
class Workload:
    """One kind of load, made by h2load or client.py. Exactly one of `requests` and `rate`."""

    name: str
    title: str
    requests: int = 0
    """As fast as it goes, until so many are done."""
    rate: int = 0
    """Requests a second in all, for `seconds`: what counts is the latency."""
    seconds: int = 10
    connections: int = 8
    streams: int = 16
    """At a time on one connection."""
    path: str = "/128"
    http1: bool = False
    post: str = ""
    """File that every request uploads."""
    traced: bool = False
    """Every request is sampled, and every span must reach the sink."""
    unique_paths: bool = False
    megabytes: float = 0.0
    """Body size, for figures by the megabyte."""
    client: str = ""
    """Kind of load that `client.py` makes; empty: h2load makes it."""
    inbound_only: bool = False
    """The load goes straight to the inbound proxy, and only its CPU counts."""
    bar: float | None = None
    """Highest ratio of CPU to the baseline's that is accepted."""
    latency_bar: float | None = None
    """The same for p50 and for p99."""


WORKLOADS = (
    Workload("h2-8x16", "HTTP/2, 8 x 16 streams, 128 B", requests=40_000, bar=0.8),
    Workload("h2-8x16-1k", "HTTP/2, 8 x 16 streams, 1 KB", requests=40_000, path="/1k", bar=0.8),
    Workload("h2-8x1", "HTTP/2, 8 x 1 stream, 128 B", requests=20_000, streams=1, bar=1.0),
    Workload("h1-16", "HTTP/1.1, 16 connections, 1 KB", requests=20_000, path="/1k", http1=True,
             connections=16, streams=1, bar=0.8),
    Workload("post-10k", "POST 10 KB, 8 x 16 streams", requests=15_000, post="10k", bar=1.0),
    Workload("download-1m", "download of 1 MB, 8 x 1 stream", requests=400, streams=1, path="/1m",
             megabytes=1.0, bar=1.4),
    Workload("upload-1m", "upload of 1 MB, 8 x 1 stream", requests=400, streams=1, post="1m", megabytes=1.0,
             bar=1.4),
    Workload("traced", "every request traced, 8 x 16 streams, 128 B", requests=30_000, traced=True, bar=0.7),
    Workload("unique-paths", "no path twice, 1 x 128 streams, 128 B", requests=30_000, connections=1,
             streams=128, unique_paths=True, bar=1.2),
    Workload("bearer-800", "no path twice and a token of 800 bytes, never the same, 8 x 16 streams",
             requests=12_000, client="unique", bar=1.4),
    Workload("new-plain", "a new plain HTTP/1.1 connection for each request, 16 at a time, 1 KB",
             requests=8_000, client="new-plain", bar=1.1),
    Workload("new-mtls", "a new mTLS connection for each request, 8 at a time, 1 KB; inbound alone",
             requests=2_000, client="new-mtls", inbound_only=True, bar=1.7),
    Workload("latency-1000", "1,000 requests a second, 4 connections, 1 KB", rate=1000, seconds=8,
             connections=4, path="/1k", latency_bar=1.0),
)  # fmt: skip

_SIZES = {"128": 128, "1k": 1024, "10k": 10_240, "200k": 204_800, "1m": 1_048_576}


def make_files(folder: Path) -> None:
    """The bodies, named by their size, below `folder`/htdocs, and the lists of paths."""
    htdocs = folder / "htdocs"
    htdocs.mkdir(parents=True, exist_ok=True)
    for name, size in _SIZES.items():
        (htdocs / name).write_bytes(b"x" * size)


def h2load_arguments(workload: Workload, folder: Path, requests: int, tag: str) -> list[str]:
    """Arguments for `requests` of them (0 with a rate). `tag` keeps the unique paths of two runs apart."""
    arguments = ["-c", str(workload.connections), "-m", str(workload.streams), "-t", "1"]
    if workload.http1:
        arguments.append("--h1")
    if workload.rate:
        arguments += ["--rps", str(workload.rate // workload.connections), "-D", str(workload.seconds)]
        arguments += ["--log-file", str(folder / "latency.tsv")]
    else:
        arguments += ["-n", str(requests)]
    if workload.post:
        arguments += ["-d", str(folder / "htdocs" / workload.post)]
    if workload.unique_paths:
        paths = folder / "paths.txt"
        paths.write_text("".join(f"{BASE}{workload.path}?{tag}-{index}\n" for index in range(requests)))
        return [*arguments, "-i", str(paths)]
    return [*arguments, BASE + workload.path]
