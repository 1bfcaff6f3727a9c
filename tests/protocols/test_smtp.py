"""SMTP (RFC 5321), whose servers speak first: a real one behind two sidecars, and Python's own client."""

from __future__ import annotations

import mailbox
import smtplib
import ssl
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.certs import make_ca
from tests.support.pairs import WAYS, World
from tests.support.processes import stopping


def reached(world: World, way: str) -> tuple[tuple[str, int], int]:
    """Where the client connects to, and the port that the server has."""
    if way == "upstream":
        return (world.caller_host, 9101), 7101
    service, port = ("declared", 7102) if way == "connect" else ("greets", 7101)
    return world.relay(f"{service}:{port}").address, port


@pytest.mark.parametrize("way", WAYS)
def test_mail_is_delivered_in_plain_text_and_by_starttls(world: World, tmp_path: Path, way: str) -> None:
    """The server's own TLS begins in the middle of the connection; neither sidecar looks at it, or waits."""
    ca = make_ca()
    (tmp_path / "root.pem").write_bytes(ca.ca_pem)
    context = ssl.create_default_context(cafile=tmp_path / "root.pem")
    at, port = reached(world, way)
    certificate = ca.issue(addresses=[at[0]])
    large = "x" * 70 + "\r\n"
    before = world.detected()
    with stopping(servers.smtp(world.host, port, tmp_path / "smtp", certificate)):
        with smtplib.SMTP(*at, timeout=10) as mail:
            assert mail.sendmail("a@test", ["b@test"], "Subject: plain\r\n\r\nhello\r\n") == {}
            mail.starttls(context=context)
            assert mail.sendmail("a@test", ["b@test"], "Subject: secret\r\n\r\n" + large * 10_000) == {}
        stored = {m["Subject"]: m.get_payload() for m in mailbox.Maildir(tmp_path / "smtp" / "mail")}
    assert stored["plain"].splitlines() == ["hello"]
    assert stored["secret"].splitlines() == ["x" * 70] * 10_000
    assert world.detected()["timeouts"] == before["timeouts"]
