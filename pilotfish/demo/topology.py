"""What the demo consists of: the replicas of examples/shop, where each of them binds, and how it is started.

Must agree with `examples/shop/laptop/*.yaml`, which tells the control plane the same addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh_api.names import ADMIN_PORT, OUTBOUND_PORT, STATUS_PORT, XDS_PORT, inbound_port

NAMESPACE = "shop"
CONTROL_PLANE = f"127.0.0.1:{XDS_PORT}"
STATUS = f"127.0.0.1:{STATUS_PORT}"
SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"


@dataclass(frozen=True, slots=True)
class Replica:
    """One application with the sidecar beside it, on a loopback address of their own."""

    name: str
    service: str
    """Also its service account."""
    address: str
    script: str
    """In examples/shop/apps."""
    port: int = 0
    """Where the application listens; 0: it only calls."""

    @property
    def admin(self) -> str:
        return f"{self.address}:{ADMIN_PORT}"

    @property
    def proxy(self) -> str:
        """What the application's HTTP_PROXY is set to."""
        return f"http://{self.address}:{OUTBOUND_PORT}"

    def addresses(self) -> dict[tuple[str, int], str]:
        """Every address that must be free, and what for."""
        wanted = {
            (self.address, ADMIN_PORT): f"{self.name}'s sidecar (admin)",
            (self.address, OUTBOUND_PORT): f"{self.name}'s sidecar (outbound)",
        }
        if self.port:
            wanted[self.address, self.port] = f"{self.name}'s application"
            wanted[self.address, inbound_port(self.port)] = f"{self.name}'s sidecar (inbound)"
        return wanted


REPLICAS = (
    Replica("users-1", "users", "127.0.1.1", "users.py", 8080),
    Replica("users-2", "users", "127.0.1.2", "users.py", 8080),
    Replica("orders-1", "orders", "127.0.1.11", "orders.py", 8080),
    Replica("orders-2", "orders", "127.0.1.12", "orders.py", 8080),
    Replica("greeter-1", "greeter", "127.0.1.21", "greeter_server.py", 50051),
    Replica("greeter-2", "greeter", "127.0.1.22", "greeter_server.py", 50051),
)
SHOPPER = Replica("shopper", "shopper", "127.0.1.31", "shopper.py")
WORKLOADS = (*REPLICAS, SHOPPER)


def wanted_addresses() -> dict[tuple[str, int], str]:
    """Every address that the demo binds, and what for."""
    wanted = {
        ("127.0.0.1", XDS_PORT): "the control plane (xDS)",
        ("127.0.0.1", STATUS_PORT): "the control plane (status)",
    }
    for replica in WORKLOADS:
        wanted.update(replica.addresses())
    return wanted
