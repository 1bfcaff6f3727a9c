"""An application of a pod, of both families: `python -m tests.support.captured_app NAME KIND=PORT...`.

Kinds: `http` and `https` (say what was asked and who asked; `/ws` echoes), `greet` (speaks first), `echo`,
and `grpc` (`grpc_app`, and a health service).
It ends at once on SIGTERM.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
import tempfile
from pathlib import Path

from aiohttp import WSMsgType, web

from tests.support.certs import make_ca

BACKLOG = 2048
"""Connections that wait to be accepted; when there are more, TCP tries again after 1 s."""


class Application:
    def __init__(self, name: str) -> None:
        self.name = name
        self.health = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/ws":
            return await self._websocket(request)
        if request.path == "/health":
            self.health = int(request.query.get("becomes", self.health))
            return web.Response(status=self.health, text=self.name)
        await asyncio.sleep(float(request.query.get("after", "0")))
        body = await request.read()
        peer = request.transport.get_extra_info("peername") if request.transport else ("",)
        return web.json_response(
            {
                "name": self.name,
                "method": request.method,
                "path": request.path_qs,
                "host": request.host,
                "peer": peer[0].removeprefix("::ffff:"),
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
        )

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"{self.name}: {message.data}")
        return socket

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 {self.name}\r\n".encode())
        await self.echo(reader, writer)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"|end")
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.close()


def server_context() -> ssl.SSLContext:
    certificate, key = make_ca("the application's own CA").issue(dns=["server.shop"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + key)
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(Path(file.name))
    context.set_alpn_protocols(["http/1.1"])
    return context


def serve_grpc(name: str, port: int) -> object:
    """In threads of its own, as long as what is returned is there."""
    import grpc

    from tests.support.grpc_app import make_server

    server = make_server(name, f"[::]:{port}")
    health = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
    service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health})
    server.add_generic_rpc_handlers((service,))
    server.start()
    return server


async def main(name: str, *ports: str) -> None:
    application = Application(name)
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", application.answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    kept: list[object] = []
    for given in ports:
        kind, _, port = given.partition("=")
        if kind == "grpc":
            kept.append(serve_grpc(name, int(port)))
        elif kind in ("http", "https"):
            context = server_context() if kind == "https" else None
            await web.TCPSite(runner, "0.0.0.0", int(port), ssl_context=context).start()
            await web.TCPSite(runner, "::", int(port), ssl_context=context).start()
        else:
            serve = {"greet": application.greet, "echo": application.echo}[kind]
            await asyncio.start_server(serve, None, int(port), backlog=BACKLOG)
    print("serves", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
