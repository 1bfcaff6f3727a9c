"""What the control plane remembers of the certificates that it signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_plane.ca import issued
from control_plane.ca.issued import IssuedCertificates
from control_plane.model.discovery import Identity

USERS = Identity("shop", "users")
THEN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = THEN + timedelta(hours=12)


def test_the_newest_certificate_of_an_account_on_a_host_counts_whatever_the_connection() -> None:
    known = IssuedCertificates()
    known.record(USERS, "ipv4:10.1.2.3:4000", THEN)
    known.record(USERS, "ipv4:10.1.2.3:5000", LATER)
    known.record(USERS, "ipv6:%5Bfd00::1%5D:5000", THEN)
    assert known.not_after(USERS, "ipv4:10.1.2.3:6000") == LATER
    assert known.not_after(USERS, "ipv6:%5Bfd00::1%5D:7") == THEN


def test_what_was_not_signed_here_is_not_known() -> None:
    known = IssuedCertificates()
    known.record(USERS, "ipv4:10.1.2.3:4000", THEN)
    assert known.not_after(USERS, "ipv4:10.1.2.4:4000") is None
    assert known.not_after(Identity("shop", "orders"), "ipv4:10.1.2.3:4000") is None


def test_past_the_bound_the_one_renewed_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issued, "MOST", 2)
    known = IssuedCertificates()
    for host in ("a", "b", "a", "c"):
        known.record(USERS, f"ipv4:{host}:1", THEN)
    assert [known.not_after(USERS, f"ipv4:{host}:1") for host in "abc"] == [THEN, None, THEN]
