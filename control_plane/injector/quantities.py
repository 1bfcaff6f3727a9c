"""Kubernetes quantities, and what a sidecar makes of its memory. Pure; used by `sidecar_container`."""

from __future__ import annotations

_OWN_MEMORY = 96
_LEAST_BUFFER = 16
"""MiB, both: of a sidecar without traffic, and for buffers in any case."""
_BYTES = {
    **{unit: 1000.0**power for power, unit in enumerate(("n", "u", "m"), -3)},
    **{unit: 1000.0**power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", 1)},
}
"""By suffix of a quantity."""


def amount(quantity: str) -> float:
    """Cores or bytes."""
    number = quantity.rstrip("numkKMGTPEi")
    return float(number) * _BYTES.get(quantity[len(number) :], 1.0)


def buffer_mebibytes(memory: str) -> int:
    """MiB of requests and responses that a sidecar with so much memory may hold."""
    mebibytes = amount(memory) / 2**20
    # Half of what the process itself leaves free: buffers are copied, and Python gives memory back late.
    return max(_LEAST_BUFFER, int(mebibytes - _OWN_MEMORY) // 2)
