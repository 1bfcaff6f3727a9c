"""How much this process buffers for all its exchanges and TCP sessions together, and when that is too much.

Made by app.py, one for the process. Exchanges and TCP sessions report what they hold; connection managers
look at `exceeded` before they start another. Nothing that has been started is stalled or cut by it: each
stream's own limit holds for that. What the kernel and the transports' write buffers hold is not in it.
"""

from __future__ import annotations

DEFAULT_LIMIT = 256 * 1024 * 1024


class BufferBudget:
    """`limit` in bytes. `exceeded` is a plain attribute because every request looks at it."""

    __slots__ = ("exceeded", "held", "limit")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.held = 0
        self.exceeded = False

    def add(self, n: int) -> None:
        """`n` more bytes are held; fewer when negative."""
        self.held += n
        self.exceeded = self.held > self.limit

    def describe(self) -> str:
        """Why new requests are turned away, for local replies and logs."""
        return f"the sidecar buffers {self.held} bytes, more than its limit of {self.limit}: try again later"

    def __repr__(self) -> str:
        return f"<BufferBudget {self.held}/{self.limit}{' exceeded' if self.exceeded else ''}>"
