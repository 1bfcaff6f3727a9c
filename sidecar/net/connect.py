"""Client-side connections: to connect and to shake hands, within one time limit."""

from __future__ import annotations

import asyncio
import socket

from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError, ConnectionOwner
from sidecar.net.sockets import Address, connect_from, describe, keep_alive
from sidecar.net.tls import TlsParameters


async def connect(
    loop: asyncio.AbstractEventLoop,
    address: Address,
    owner: ConnectionOwner,
    tls: TlsParameters | None,
    timeout: float,  # noqa: ASYNC109 (several steps share it, and the error names the one)
    sources: tuple[str, ...] = (),
) -> Connection:
    """Connect and, with `tls`, shake hands, all within `timeout` seconds. Raises ConnectError. `sources`: IP
    addresses, of which the one of the other side's family is connected from.

    Under TLS 1.3 a server that refuses this side's certificate says so only afterwards: that comes as
    the loss of the connection, with the alert's name in the reason.
    """
    waiter: asyncio.Future[None] = loop.create_future()
    connection = Connection(loop, owner, tls, False, waiter)
    try:
        async with asyncio.timeout(timeout):
            if sources:
                sock = await connect_from(loop, address, sources)
                transport, _ = await loop.create_connection(lambda: connection, sock=sock)
            else:
                transport, _ = await loop.create_connection(lambda: connection, address.host, address.port)
            keep_alive(transport.get_extra_info("socket"))
            await waiter
    except TimeoutError:
        done = "the TLS handshake" if connection.connected else "the TCP handshake"
        raise ConnectError(
            f"cannot connect to {address}: {done} took more than {timeout:g} s", "timeout"
        ) from None
    except socket.gaierror as error:
        raise ConnectError(f"cannot connect to {address}: {error.strerror}", "dns") from error
    except OSError as error:
        raise ConnectError(f"cannot connect to {address}: {describe(error)}", "tcp") from error
    finally:
        if not waiter.done() or waiter.cancelled():
            waiter.cancel()
            connection.abort("gave up connecting")
    return connection
