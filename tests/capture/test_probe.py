"""The connection that proves redirection, where another process listens already."""

from __future__ import annotations

import socket
import struct
import threading

from pilotfish.capture import probe

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that ends a connection with RST."""


def test_a_connection_that_is_reset_at_once_was_accepted_all_the_same() -> None:
    """A sidecar resets what leads to a port where nobody listens, perhaps before `connect` has returned."""

    def serve() -> None:
        for _ in range(300):
            accepted, _ = server.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            accepted.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = server.getsockname()
        assert {probe.arrival(address, address) for _ in range(300)} == {None}
        thread.join(10)
