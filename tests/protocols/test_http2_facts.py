"""What HTTP/1.1 cannot carry of HTTP/2, and what becomes of it: a test a row of the second table of
docs/protocols.md. Callers speak HTTP/2, the application HTTP/1.1 behind both sidecars."""

from __future__ import annotations

import re

from tests.support.clients import H2Client
from tests.support.pairs import RawApp, World, ok


def test_cookie_fields_are_joined_for_an_application_of_http_1(world: World, web: RawApp) -> None:
    heads = web.on("/crumbs", ok())
    crumbs = [("cookie", "a=1"), ("x-a", "b"), ("cookie", "b=2"), ("cookie", "c=3")]
    with H2Client(world.proxy) as client:
        for _ in range(3):  # remembered heads are written anew
            assert client.fetch("/crumbs", authority="web", headers=crumbs).status == 200
    assert [re.findall(rb"cookie: .*", head) for head in heads] == [[b"cookie: a=1; b=2; c=3\r"]] * 3
