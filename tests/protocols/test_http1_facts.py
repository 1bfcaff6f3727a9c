"""What HTTP/2 cannot carry of HTTP/1, and what becomes of it between the two: a test a row of the first
table of docs/protocols.md. Callers and application speak HTTP/1, the sidecars HTTP/2 to each other."""

from __future__ import annotations

import re
import socket
import time

import pytest

from tests.support.pairs import Peer, RawApp, World, ok


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: web", *fields, "", ""]
    return "\r\n".join(lines).encode()


def test_the_reason_phrase_is_the_standard_one(client: Peer, web: RawApp) -> None:
    web.on("/reason", b"HTTP/1.1 404 Nothing Here\r\ncontent-length: 0\r\n\r\n")
    client.send(get("/reason"))
    assert client.head().startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_an_unknown_status_has_no_reason_phrase(client: Peer, web: RawApp) -> None:
    web.on("/odd", b"HTTP/1.1 299 Odd\r\ncontent-length: 0\r\n\r\n")
    client.send(get("/odd"))
    assert client.head().startswith(b"HTTP/1.1 299 \r\n")


def test_field_names_travel_in_lower_case_and_values_as_they_are(client: Peer, web: RawApp) -> None:
    heads = web.on("/case", ok(b"", "X-Odd-CASE: Kept As Is"))
    client.send(get("/case", "X-MiXed: VaLue"))
    assert b"\r\nx-odd-case: Kept As Is\r\n" in client.head()
    assert b"\r\nx-mixed: VaLue\r\n" in heads[0]


def test_repeated_fields_stay_apart_and_in_their_order(client: Peer, web: RawApp) -> None:
    heads = web.on("/cookies", ok(b"", "Set-Cookie: a=1, x", "Set-Cookie: b=2"))
    client.send(get("/cookies", "X-N: 1", "X-N: 2"))
    assert re.findall(rb"set-cookie: (.*)\r\n", client.head()) == [b"a=1, x", b"b=2"]
    assert re.findall(rb"x-n: (.*)\r\n", heads[0]) == [b"1", b"2"]


def test_http_1_0_gets_the_end_of_the_connection_as_the_end_of_the_body(client: Peer, web: RawApp) -> None:
    web.on(
        "/chunked", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    client.send(get("/chunked", version="1.0"))
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in head
    assert body == b"onetwo"


def test_http_1_0_keeps_its_connection_where_it_asks_to(client: Peer, web: RawApp) -> None:
    """What nginx sends to an upstream without `proxy_http_version`, and ab with -k."""
    web.on("/kept", ok())
    for _ in range(2):
        client.send(get("/kept", "Connection: keep-alive", version="1.0"))
        head, body = client.answer()
        assert b"\r\nconnection: keep-alive\r\n" in head
        assert body == b"ok\n"
    client.send(get("/kept", version="1.0"))
    assert client.rest().endswith(b"\r\nok\n")  # and the connection has ended


def test_the_application_hears_1_1_from_a_caller_of_1_0(client: Peer, web: RawApp) -> None:
    heads = web.on("/version", ok())
    client.send(get("/version", version="1.0"))
    client.answer()
    assert heads[0].startswith(b"GET /version HTTP/1.1\r\n")


def test_an_application_of_1_0_is_understood(client: Peer, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nold but true")
        peer.sock.close()

    web.on("/old", script)
    client.send(get("/old"))
    head, body = client.answer()
    assert b"\r\ntransfer-encoding: chunked\r\n" in head  # its end must be told from a cut
    assert body == b"old but true"


def test_http_1_0_without_host_at_a_proxy_is_told_whom_it_reached(client: Peer, world: World) -> None:
    """Passed on to the address that it came to, the request would come back for ever."""
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 421 ")
    assert body.startswith(f"{world.proxy[0]}:{world.proxy[1]} is the sidecar".encode())


def test_a_request_for_the_sidecar_itself_does_not_go_round_in_circles(client: Peer, world: World) -> None:
    client.send(f"GET / HTTP/1.1\r\nHost: {world.proxy[0]}:{world.proxy[1]}\r\n\r\n".encode())
    assert client.head().startswith(b"HTTP/1.1 421 ")


def test_connection_close_of_the_application_ends_its_own_connection_alone(client: Peer, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        peer.send(ok(b"last", "Connection: close"))
        peer.sock.close()

    web.on("/close", script)
    for _ in range(2):
        client.send(get("/close"))
        head, body = client.answer()
        assert b"connection:" not in head
        assert body == b"last"


def test_connection_close_of_the_caller_ends_its_own_connection_alone(world: World, web: RawApp) -> None:
    heads = web.on("/own", ok())
    for _ in range(2):
        with world.dial() as client:
            client.send(get("/own", "Connection: close"))
            assert b"\r\nconnection: close\r\n" in client.head()
            assert client.rest() == b"ok\n"
    assert all(b"connection:" not in head for head in heads)


def test_what_connection_names_ends_at_this_hop(client: Peer, web: RawApp) -> None:
    answer = ok(b"", "X-Private: 1", "Connection: x-private", "Keep-Alive: timeout=5", "X-Public: 1")
    heads = web.on("/tokens", answer)
    client.send(
        get("/tokens", "Connection: x-secret", "X-Secret: 1", "Proxy-Connection: keep-alive", "X-Open: 1")
    )
    head = client.head()
    assert b"x-private" not in head
    assert b"keep-alive" not in head
    assert b"\r\nx-public: 1\r\n" in head
    assert b"x-secret" not in heads[0]
    assert b"connection" not in heads[0]
    assert b"\r\nx-open: 1\r\n" in heads[0]


def test_te_is_reduced_to_trailers(client: Peer, web: RawApp) -> None:
    heads = web.on("/te", ok())
    client.send(get("/te", "TE: gzip, trailers;q=0.5, trailers", "Connection: te"))
    client.answer()
    client.send(get("/te", "TE: gzip", "Connection: te"))
    client.answer()
    assert b"\r\nte: trailers\r\n" in heads[0]
    assert b"\r\nte:" not in heads[1]


@pytest.mark.parametrize("method", ["BAN", "VERSION-CONTROL", "brew"])
def test_a_method_is_whatever_the_application_understands(client: Peer, web: RawApp, method: str) -> None:
    heads = web.on("/method", ok())
    client.send(get("/method", method=method))
    assert client.answer()[1] == b"ok\n"
    assert heads[0].startswith(f"{method} /method HTTP/1.1\r\n".encode())


def test_nobody_sees_by_via_that_there_are_sidecars(client: Peer, web: RawApp) -> None:
    heads = web.on("/via", ok(b"", "Via: 1.1 behind"))
    client.send(get("/via") + get("/via", "Via: 1.1 before"))
    answers = [client.head(), client.head()]
    assert [re.findall(rb"\r\nvia: (.*)\r\n", answer) for answer in answers] == [[b"1.1 behind"]] * 2
    assert [re.findall(rb"\r\nvia: (.*)\r\n", head) for head in heads] == [[], [b"1.1 before"]]


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_sidecars_are_no_hops_that_max_forwards_counts(client: Peer, web: RawApp, method: str) -> None:
    heads = web.on("/hops", ok())
    client.send(get("/hops", "Max-Forwards: 0", method=method))
    assert client.answer()[1] == b"ok\n"
    assert heads[0].startswith(f"{method} /hops ".encode())
    assert b"\r\nmax-forwards: 0\r\n" in heads[0]


def test_options_asterisk_reaches_the_application_as_such(client: Peer, web: RawApp) -> None:
    heads = web.on("*", ok(b"", "Allow: GET"))
    client.send(get("*", method="OPTIONS"))
    assert b"\r\nallow: GET\r\n" in client.head()
    assert heads[0].startswith(b"OPTIONS * HTTP/1.1\r\nhost: web\r\n")


def test_options_in_absolute_form_without_a_path_is_the_asterisk(client: Peer, web: RawApp) -> None:
    heads = web.on("*", ok())
    client.send(get("http://web", method="OPTIONS"))
    client.answer()
    assert heads[0].startswith(b"OPTIONS * HTTP/1.1\r\nhost: web\r\n")


def test_the_absolute_form_decides_against_host(client: Peer, web: RawApp) -> None:
    """RFC 9112 section 3.2.2; the application gets the origin form."""
    heads = web.on("/absolute", ok())
    client.send(b"GET http://web.shop:80/absolute?q HTTP/1.1\r\nHost: elsewhere.invalid\r\n\r\n")
    client.answer()
    assert heads[0].startswith(b"GET /absolute?q HTTP/1.1\r\nhost: web.shop:80\r\n")
    assert heads[0].lower().count(b"\r\nhost:") == 1


def test_user_information_in_the_target_is_refused(client: Peer, web: RawApp) -> None:
    client.send(b"GET http://user@web/ HTTP/1.1\r\nHost: web\r\n\r\n")
    assert client.head().startswith(b"HTTP/1.1 400 ")


def test_chunks_are_framed_anew_and_their_extensions_dropped(client: Peer, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        size = int(peer.until(b"\r\n"), 16)  # raises for an extension
        assert size
        body = peer.exactly(size)
        peer.until(b"0\r\n\r\n")
        peer.send(ok(body))

    heads = web.on("/chunks", script)
    client.send(
        get("/chunks", "Transfer-Encoding: chunked", method="POST") + b"5;ext=1\r\nhello\r\n0\r\n\r\n"
    )
    assert client.answer()[1] == b"hello"
    assert b"\r\ntransfer-encoding: chunked\r\n" in heads[0]


def test_trailers_pass_in_both_directions(client: Peer, web: RawApp) -> None:
    seen = []

    def script(peer: Peer, head: bytes) -> None:
        seen.append(peer.until(b"\r\n\r\n"))
        peer.send(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\nX-Sum: 9\r\n\r\n"
        )

    heads = web.on("/trailers", script)
    client.send(get("/trailers", "Transfer-Encoding: chunked", "Trailer: X-Up", method="POST"))
    client.send(b"2\r\nup\r\n0\r\nX-Up: 1\r\nContent-Length: 9\r\n\r\n")
    assert b"\r\ntrailer: X-Sum\r\n" in client.head()
    assert client.until(b"\r\n\r\n") == b"1\r\na\r\n0\r\nx-sum: 9\r\n\r\n"
    assert b"\r\ntrailer: X-Up\r\n" in heads[0]
    assert seen == [b"2\r\nup\r\n0\r\nx-up: 1\r\n\r\n"]


def test_trailers_for_a_caller_of_1_0_are_dropped(client: Peer, web: RawApp) -> None:
    web.on("/late", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 9\r\n\r\n")
    client.send(get("/late", version="1.0"))
    assert client.answer()[1] == b"a"


@pytest.mark.parametrize("lengths", ["Content-Length: 2\r\nContent-Length: 2", "Content-Length: 2, 2"])
def test_a_repeated_content_length_is_refused_even_when_it_agrees(
    client: Peer, web: RawApp, lengths: str
) -> None:
    heads = web.on("/twice", ok())
    client.send(get("/twice", lengths, method="POST") + b"ab")
    assert client.head().startswith(b"HTTP/1.1 400 ")
    client.rest()
    assert heads == []


def test_a_response_with_two_lengths_is_502_with_the_reason(client: Peer, web: RawApp) -> None:
    web.on("/two", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc")
    client.send(get("/two"))
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"Duplicate Content-Length" in body


def test_head_204_and_304_have_lengths_and_no_bodies(client: Peer, web: RawApp) -> None:
    web.on("/length", b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")
    web.on("/none", b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n")
    web.on("/same", b'HTTP/1.1 304 Not Modified\r\netag: "a"\r\ncontent-length: 99\r\n\r\n')
    client.send(get("/length", method="HEAD") + get("/none") + get("/same"))
    first, second, third = client.head(), client.head(), client.head()
    assert b"\r\ncontent-length: 1234\r\n" in first
    assert b"content-length" not in second
    assert b"transfer-encoding" not in second
    assert b"\r\ncontent-length: 99\r\n" in third
    assert client.silent(0.1)


def test_informational_responses_pass_in_their_order(client: Peer, web: RawApp) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"
    web.on("/hints", b"HTTP/1.1 102 Processing\r\n\r\n" + hints + ok())
    client.send(get("/hints"))
    assert client.head() == b"HTTP/1.1 102 Processing\r\n\r\n"
    assert client.head() == b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"
    assert client.answer()[1] == b"ok\n"


def test_a_caller_of_1_0_gets_no_informational_response(client: Peer, web: RawApp) -> None:
    web.on("/quiet", b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n" + ok())
    client.send(get("/quiet", version="1.0"))
    assert client.head().startswith(b"HTTP/1.1 200 ")


def test_the_application_alone_says_continue_and_gets_no_byte_before(client: Peer, web: RawApp) -> None:
    waited = []

    def script(peer: Peer, head: bytes) -> None:
        waited.append(peer.silent(0.2))
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.send(ok(peer.exactly(5)))

    heads = web.on("/expect", script)
    client.send(get("/expect", "Expect: 100-continue", "Content-Length: 5", method="POST"))
    started = time.monotonic()
    assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert time.monotonic() - started >= 0.2
    client.send(b"hello")
    assert client.answer()[1] == b"hello"
    assert waited == [True]
    assert b"\r\nexpect: 100-continue\r\n" in heads[0]


def test_a_body_that_is_sent_again_waits_for_its_own_100(client: Peer, web: RawApp) -> None:
    """The first application asks for the body, has it and vanishes; a second one gets the request."""
    waited = []

    def script(peer: Peer, head: bytes) -> None:
        if len(heads) == 1:
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.exactly(5)
            peer.sock.close()
            raise EOFError
        waited.append(peer.silent(0.2))
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.send(ok(peer.exactly(5)))

    heads = web.on("/again", script)
    client.send(get("/again", "Expect: 100-continue", "Content-Length: 5", method="PUT"))
    assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert client.answer()[1] == b"hello"
    assert waited == [True]


def test_a_caller_of_1_0_expects_nothing(client: Peer, web: RawApp) -> None:
    """RFC 9110 section 10.1.1: its field is ignored, or the application would answer what it cannot read."""
    heads = web.on("/expect10", lambda peer, head: peer.send(ok(peer.exactly(5))))
    fields = ("Expect: 100-continue", "Content-Length: 5", "Connection: keep-alive")
    for _ in range(2):
        client.send(get("/expect10", *fields, method="POST", version="1.0") + b"hello")
        assert client.answer()[1] == b"hello"  # on a connection that is kept: the body was no surprise
    assert all(b"\r\nexpect:" not in head for head in heads)


def test_a_refusal_instead_of_100_reaches_a_caller_that_has_sent_nothing(client: Peer, web: RawApp) -> None:
    web.on("/refused", b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 4\r\n\r\nno!\n")
    client.send(get("/refused", "Expect: 100-continue", "Content-Length: 5", method="POST"))
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 417 ")
    assert body == b"no!\n"
    assert b"\r\nconnection: close\r\n" in head  # nobody knows whether the body would still come


def test_an_early_answer_reaches_a_caller_that_goes_on_sending(world: World, web: RawApp) -> None:
    web.on("/early", b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbig\n")
    with world.dial() as client:
        client.send(get("/early", "Content-Length: 10000000", method="POST") + b"x" * 100_000)
        head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 413 ")
    assert body == b"big\n"


def test_pipelined_requests_are_answered_in_their_order(client: Peer, web: RawApp) -> None:
    def slow(peer: Peer, head: bytes) -> None:
        time.sleep(0.1)
        peer.send(ok(b"slow"))

    web.on("/slow", slow)
    web.on("/fast", ok(b"fast"))
    client.send(get("/slow") + get("/fast") + get("/slow") + get("/fast"))
    assert [client.answer()[1] for _ in range(4)] == [b"slow", b"fast", b"slow", b"fast"]


def test_a_response_cut_short_is_not_passed_off_as_whole(client: Peer, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        peer.sock.close()

    web.on("/cut", script)
    client.send(get("/cut"))
    client.head()
    with pytest.raises((ConnectionResetError, EOFError)):
        client.until(b"0\r\n\r\n")


def test_a_short_response_that_breaks_off_is_asked_for_again(client: Peer, web: RawApp) -> None:
    """What breaks off has its length, and nothing of it has reached the caller."""
    answers = iter((b"hel", b"hello"))

    def script(peer: Peer, head: bytes) -> None:
        body = next(answers)
        # What comes with an end leaves in one segment with it.
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + body)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, len(body) < 5)
        if len(body) < 5:
            peer.sock.close()

    heads = web.on("/cut", script)
    client.send(get("/cut"))
    assert client.answer()[1] == b"hello"
    assert len(heads) == 2


def test_an_upgrade_other_than_websocket_is_ignored(client: Peer, web: RawApp) -> None:
    """RFC 9110 section 7.8 lets a server ignore it; RFC 9113 took h2c away."""
    heads = web.on("/h2c", ok())
    client.send(
        get("/h2c", "Upgrade: h2c", "Connection: upgrade, http2-settings", "HTTP2-Settings: AAMAAABk")
    )
    assert client.answer()[1] == b"ok\n"
    assert b"upgrade" not in heads[0]
    assert b"http2-settings" not in heads[0]
