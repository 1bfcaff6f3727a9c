"""Where inbound listeners are bound."""

from __future__ import annotations

import pytest

from mesh_api.names import ADMIN_PORT, OUTBOUND_PORT, inbound_port


@pytest.mark.parametrize(
    ("application", "inbound"),
    [
        (80, 10080),
        (8080, 18080),
        (55535, 65535),
        (55536, 45536),
        (65535, 55535),
        (5000, 25000),
        (5001, 25001),
    ],
)
def test_the_inbound_port_follows_from_the_application_s(application: int, inbound: int) -> None:
    assert inbound_port(application) == inbound


def test_no_inbound_port_is_one_of_the_sidecar_s_own() -> None:
    ports = {inbound_port(port) for port in range(1, 65536)}
    assert not ports & {ADMIN_PORT, OUTBOUND_PORT}
    assert 0 < min(ports) <= max(ports) < 65536
