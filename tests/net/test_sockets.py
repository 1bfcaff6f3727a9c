"""Listening sockets and what their errors tell the user."""

from __future__ import annotations

import asyncio
import errno
import re
import socket

import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net.connect import connect
from sidecar.net.sockets import ListenError, bind_listener, connect_from
from tests.support.connections import Owner, RecordingCodec, run


def test_listener_accepts_on_an_ephemeral_port() -> None:
    with bind_listener(SocketAddress("127.0.0.1", 0), "in") as listener:
        port = listener.getsockname()[1]
        assert not listener.getblocking()
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_port_can_be_bound_again_at_once_after_connections() -> None:
    with bind_listener(SocketAddress("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), timeout=1)
        listener.setblocking(True)
        listener.accept()[0].close()  # the server closes first: its side is in TIME_WAIT
        client.close()
    bind_listener(SocketAddress("127.0.0.1", port)).close()


def test_address_in_use_names_the_listener_and_what_to_do() -> None:
    with bind_listener(SocketAddress("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            bind_listener(SocketAddress("127.0.0.1", port), "outbound")
    assert str(caught.value) == (
        f"listener outbound cannot bind 127.0.0.1:{port}: the address is in use. Stop the program that has "
        f"it (`ss -ltnp 'sport = :{port}'` names it) or configure another port"
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.1", "no interface of this machine has that address"),
        ("localhost", "'localhost' is not an IP address"),
    ],
)
def test_wrong_address_says_why(host: str, text: str) -> None:
    with pytest.raises(ListenError, match=re.escape(f"cannot bind {host}:0: ") + f".*{re.escape(text)}"):
        bind_listener(SocketAddress(host, 0))


def test_ipv6_listener_takes_ipv6_alone() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listener = bind_listener(SocketAddress("::1", 0))
    except ListenError:
        pytest.skip("no IPv6 loopback")
    with listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def kept_alive(sock: socket.socket) -> bool:
    """A peer is asked after 30 s of silence and given up after three questions, 10 s apart. TCP_USER_TIMEOUT
    would end connections whose peer has only stopped reading."""
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    found = [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names]
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) and found == [30, 10, 3, 0]


def test_accepted_connections_are_kept_alive_by_the_kernel() -> None:
    with (
        bind_listener(SocketAddress("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=1),
    ):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert kept_alive(accepted)


def test_connections_that_are_made_are_kept_alive_by_the_kernel() -> None:
    async def main() -> None:
        address = SocketAddress(*listener.getsockname())
        made = await connect(asyncio.get_running_loop(), address, Owner(RecordingCodec), None, 5.0)
        assert made._transport is not None
        assert kept_alive(made._transport.get_extra_info("socket"))
        made.abort()

    with bind_listener(SocketAddress("127.0.0.1", 0)) as listener:
        run(main)


def connected(port: int, *sources: str) -> str:
    """The address that a connection to 127.0.0.1 comes from."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        with await connect_from(loop, SocketAddress("127.0.0.1", port), sources) as client:
            host: str = client.getsockname()[0]
            return host

    return asyncio.run(main())


def test_connections_come_from_the_source_of_their_family() -> None:
    with bind_listener(SocketAddress("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert connected(port, "::6", "127.0.0.6", "127.0.0.7") == "127.0.0.6"


def test_without_a_source_of_that_family_nothing_is_connected() -> None:
    with bind_listener(SocketAddress("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"no source address of the family of 127.0.0.1:{port}"):
            connected(port, "::6")
        with pytest.raises(BlockingIOError):
            listener.accept()
