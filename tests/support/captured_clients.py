"""Clients as an application would use them: `python -m tests.support.captured_clients KIND HOST PORT`.

They print one JSON value. They know nothing of the mesh.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

PATH = "/test.Greeter/"


def _call(channel: Any, kind: str, method: str, request: Any) -> Any:
    return getattr(channel, kind)(PATH + method)(request, timeout=20)


def grpc(target: str) -> object:
    import grpc

    with grpc.insecure_channel(target) as channel:
        many = channel.unary_unary(PATH + "Hello")
        futures = [many.future(b"%d" % number, timeout=20) for number in range(100)]
        try:
            _call(channel, "unary_unary", "Fail", b"")
        except grpc.RpcError as error:
            failure = [error.code().name, error.details()]  # type: ignore[attr-defined]
        return {
            "unary": _call(channel, "unary_unary", "Hello", b"x").decode(),
            "server stream": [m.decode() for m in _call(channel, "unary_stream", "Listing", b"3,0.02")],
            "client stream": _call(channel, "stream_unary", "Total", iter([b"x" * 100000] * 5)).decode(),
            "both": [m.decode() for m in _call(channel, "stream_stream", "Chat", iter([b"1", b"2"]))],
            "concurrent": len({future.result() for future in futures}),
            "failure": failure,
        }


def redis(host: str, port: str) -> object:
    import redis

    with redis.Redis(host=host, port=int(port), socket_timeout=10) as client:
        client.set("large", b"x" * 1_000_000)
        pipe = client.pipeline()
        for number in range(100):
            pipe.set(f"key{number}", number)
        return [client.ping(), len(client.get("large")), sum(pipe.execute())]  # type: ignore[arg-type]


def websocket(url: str) -> object:
    from websockets.sync.client import connect

    def answers() -> Iterator[str]:
        with connect(url, proxy=None, open_timeout=10) as client:
            for number in range(3):
                client.send(f"message {number}")
                yield str(client.recv(timeout=10))

    return list(answers())


def load(url: str) -> object:
    """Eight clients, half of them with a new connection for each POST, until SIGTERM.
    Counts by status and name, and prints each such pair when it comes for the first time."""
    import aiohttp

    seen: Counter[str] = Counter()
    end = asyncio.Event()

    def count(what: str) -> None:
        if what not in seen:
            print(what, flush=True)
        seen[what] += 1

    async def one(session: aiohttp.ClientSession) -> None:
        while not end.is_set():
            try:
                async with session.post(url, data=b"not for sending twice") as response:
                    body = (
                        await response.json() if response.status == 200 else {"name": await response.text()}
                    )
                    count(f"{response.status} {body['name']}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                count(repr(error))
            await asyncio.sleep(0.05)

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as kept,
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as new,
        ):
            await asyncio.gather(*(one(session) for session in (kept, new) for _ in range(4)))

    asyncio.run(main())
    return seen


if __name__ == "__main__":
    kinds = {"grpc": grpc, "redis": redis, "websocket": websocket, "load": load}
    print(json.dumps(kinds[sys.argv[1]](*sys.argv[2:])))
