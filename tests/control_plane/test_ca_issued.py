"""What the control plane remembers of the certificates that it signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_plane.ca import issued
from control_plane.ca.issued import IssuedCertificates
from control_plane.model.discovery import Identity

USERS = Identity("shop", "users")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)
LATER = NOW + timedelta(hours=12)


def test_the_newest_certificate_of_an_account_on_a_host_counts_whatever_the_connection() -> None:
    known = IssuedCertificates()
    known.record(USERS, "ipv4:10.1.2.3:4000", SOON)
    known.record(USERS, "ipv6:%5Bfd00::1%5D:5000", SOON)
    known.record(USERS, "ipv4:10.1.2.3:5000", LATER)
    assert known.valid(NOW) == [(USERS, "ipv6:%5Bfd00::1%5D", SOON), (USERS, "ipv4:10.1.2.3", LATER)]


def test_one_that_has_ended_is_not_shown() -> None:
    known = IssuedCertificates()
    known.record(USERS, "ipv4:10.1.2.3:4000", SOON)
    assert known.valid(SOON) == []


def test_past_the_bound_the_one_renewed_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issued, "MOST", 2)
    known = IssuedCertificates()
    for host in ("a", "b", "a", "c"):
        known.record(USERS, f"ipv4:{host}:1", SOON)
    assert [host for _, host, _ in known.valid(NOW)] == ["ipv4:a", "ipv4:c"]
