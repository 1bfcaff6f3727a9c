"""What makes messages well-formed: RFC 9113 section 8, RFC 8441, and content lengths."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import RequestHead
from sidecar.protocol.h1_wire import H1Error, H1Options, parse_request, parse_trailers
from tests.support import h2_frames as f
from tests.support.h2_frames import client, server, stream_error

PROTOCOL_ERROR = 1
METHOD, SCHEME, AUTHORITY, PATH = f.GET
CONNECT = (b":method", b"CONNECT")
WEBSOCKET = (b":protocol", b"websocket")

MALFORMED = {
    "no method": [SCHEME, AUTHORITY, PATH],
    "no scheme": [METHOD, AUTHORITY, PATH],
    "no path": [METHOD, SCHEME, AUTHORITY],
    "no authority and no host": [METHOD, SCHEME, PATH],
    "nothing": [],
    "method twice": [METHOD, *f.GET],
    "path twice": [*f.GET, PATH],
    "pseudo-header behind a field": [METHOD, SCHEME, AUTHORITY, (b"a", b"b"), PATH],
    "unknown pseudo-header": [*f.GET, (b":x", b"y")],
    "response pseudo-header": [*f.GET, (b":status", b"200")],
    "empty path": [METHOD, SCHEME, AUTHORITY, (b":path", b"")],
    "relative path": [METHOD, SCHEME, AUTHORITY, (b":path", b"x")],
    "asterisk without OPTIONS": [METHOD, SCHEME, AUTHORITY, (b":path", b"*")],
    "space in path": [METHOD, SCHEME, AUTHORITY, (b":path", b"/a b")],
    "line feed in path": [METHOD, SCHEME, AUTHORITY, (b":path", b"/\n")],
    "fragment in path": [METHOD, SCHEME, AUTHORITY, (b":path", b"/a#b")],
    "8-bit path": [METHOD, SCHEME, AUTHORITY, (b":path", b"/\xc3\xa9")],
    "method is no token": [(b":method", b"GE T"), SCHEME, AUTHORITY, PATH],
    "empty method": [(b":method", b""), SCHEME, AUTHORITY, PATH],
    "bad scheme": [METHOD, (b":scheme", b"ht/tp"), AUTHORITY, PATH],
    "user information": [METHOD, SCHEME, (b":authority", b"u@h"), PATH],
    "empty authority": [METHOD, SCHEME, (b":authority", b""), PATH],
    "upper case": [*f.GET, (b"X-Up", b"1")],
    "empty name": [*f.GET, (b"", b"1")],
    "space in name": [*f.GET, (b"a b", b"1")],
    "colon in name": [*f.GET, (b"a:b", b"1")],
    "8-bit name": [*f.GET, (b"\xc3\xa4", b"1")],
    "line feed in value": [*f.GET, (b"a", b"b\nc")],
    "carriage return in value": [*f.GET, (b"a", b"b\rc")],
    "NUL in value": [*f.GET, (b"a", b"b\0c")],
    "leading space": [*f.GET, (b"a", b" b")],
    "trailing tab": [*f.GET, (b"a", b"b\t")],
    "connection": [*f.GET, (b"connection", b"close")],
    "proxy-connection": [*f.GET, (b"proxy-connection", b"close")],
    "keep-alive": [*f.GET, (b"keep-alive", b"timeout=5")],
    "transfer-encoding": [*f.GET, (b"transfer-encoding", b"chunked")],
    "upgrade": [*f.GET, (b"upgrade", b"h2c")],
    "te": [*f.GET, (b"te", b"gzip")],
    "te list": [*f.GET, (b"te", b"trailers, gzip")],
    "host differs": [*f.GET, (b"host", b"b.example")],
    "host twice": [*f.GET, (b"host", b"a.example"), (b"host", b"a.example")],
    "content-length is no number": [*f.GET, (b"content-length", b"1x")],
    "negative content-length": [*f.GET, (b"content-length", b"-1")],
    "content-length list": [*f.GET, (b"content-length", b"0, 0")],
    "content-length twice": [*f.GET, (b"content-length", b"0"), (b"content-length", b"0")],
    "CONNECT with path": [CONNECT, AUTHORITY, PATH],
    "CONNECT with scheme": [CONNECT, AUTHORITY, SCHEME],
    "CONNECT without authority": [CONNECT, (b"host", b"a")],
    "protocol that was not offered": [CONNECT, WEBSOCKET, SCHEME, AUTHORITY, PATH],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_resets_its_stream_only(name: str) -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    # the same with the field behind a remembered prefix, and twice, so that nothing is remembered wrongly
    prefix = f.block(f.GET)
    for stream_id in (3, 5):
        assert stream_error(connection, f.headers(stream_id, MALFORMED[name], True)) == PROTOCOL_ERROR
    if MALFORMED[name][:4] == f.GET and len(MALFORMED[name]) > 4:
        tail = f.block(MALFORMED[name])[len(prefix) :]
        assert stream_error(connection, f.frame(f.HEADERS, 5, 7, prefix + tail)) == PROTOCOL_ERROR
    assert len(connection.requests) == 1
    assert connection.say(f.headers(9, f.GET, True)) == []
    assert len(connection.requests) == 2


ACCEPTED = {
    "OPTIONS *": [(b":method", b"OPTIONS"), SCHEME, AUTHORITY, (b":path", b"*")],
    "te trailers": [*f.GET, (b"te", b"Trailers")],
    "8-bit value": [*f.GET, (b"a", b"\xc3\xa4\tb c")],
    "empty value": [*f.GET, (b"a", b"")],
    "token name": [*f.GET, (b"a!#$%&'*+-.^_`|~1", b"1")],
    "pseudo-headers in any order": [PATH, AUTHORITY, SCHEME, METHOD],
    "cookie crumbs": [*f.GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_well_formed_requests_pass(name: str) -> None:
    connection = server()
    assert connection.say(f.headers(1, ACCEPTED[name], True)) == []
    head = connection.requests[0].head
    assert isinstance(head, RequestHead)
    assert list(head.fields + head.fresh) == [x for x in ACCEPTED[name] if not x[0].startswith(b":")]


@pytest.mark.parametrize("host", [b"a.example", b"A.Example"])
def test_host_becomes_the_authority(host: bytes) -> None:
    connection = server()
    connection.say(f.headers(1, [*f.GET, (b"host", host)], True))
    connection.say(f.headers(3, [METHOD, SCHEME, PATH, (b"host", host)], True))
    assert [x.head.authority for x in connection.requests] == [b"a.example", host]
    assert all(x.head.fields + x.head.fresh == () for x in connection.requests)


def test_connect_heads() -> None:
    connection = server(enable_connect_protocol=True)
    connection.say(f.headers(1, [CONNECT, (b":authority", b"db:5432")]))
    connection.say(f.headers(3, [CONNECT, WEBSOCKET, SCHEME, AUTHORITY, PATH]))
    plain, extended = (x.head for x in connection.requests)
    assert (plain.scheme, plain.authority, plain.path, plain.protocol) == (b"", b"db:5432", b"", b"")
    assert (extended.scheme, extended.path, extended.protocol) == (b"http", b"/", b"websocket")
    assert stream_error(connection, f.headers(5, [METHOD, WEBSOCKET, *f.GET[1:]])) == PROTOCOL_ERROR


def test_paths_are_judged_as_on_http_1() -> None:
    """A path that one version lets pass and the other refuses could get around a rule of a route."""
    for octet in range(256):
        path = b"/a%cb" % octet
        connection = server()
        connection.say(f.headers(1, [*f.GET[:3], (b":path", path)], True))
        try:
            taken = parse_request(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % path, H1Options()).head.path == path
        except H1Error:
            taken = False
        assert bool(connection.requests) is taken, path


LENGTH_3 = (b"content-length", b"3")


@pytest.mark.parametrize(
    "octets",
    [
        f.headers(1, [*f.POST, LENGTH_3], True),
        f.headers(1, [*f.POST, LENGTH_3]) + f.data(1, b"ab", True),
        f.headers(1, [*f.POST, LENGTH_3]) + f.data(1, b"abcd"),
        f.headers(1, [*f.POST, LENGTH_3]) + f.data(1, b"ab") + f.headers(1, [(b"t", b"1")], True),
    ],
)
def test_content_that_differs_from_its_length(octets: bytes) -> None:
    connection = server()
    assert stream_error(connection, octets) == PROTOCOL_ERROR
    assert all(x.reset is not None and b"abcd" not in x.body for x in connection.requests)


def test_content_that_matches_its_length() -> None:
    connection = server()
    connection.say(f.headers(1, [*f.POST, LENGTH_3]) + f.data(1, b"ab") + f.padded(1, b"c", 5, True))
    assert connection.requests[0].ended
    connection.say(f.headers(3, [*f.POST, LENGTH_3]) + f.data(3, b"abc") + f.headers(3, [(b"t", b"1")], True))
    assert connection.requests[1].ended


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304")])
def test_responses_without_content_may_have_a_length(method: bytes, status: bytes) -> None:
    connection = client()
    head = RequestHead(method, b"http", b"a", b"/")
    recorder = connection.request(head)
    other = connection.request(head)
    connection.take()
    connection.say(f.headers(1, [(b":status", status), LENGTH_3], True))
    assert recorder.ended
    assert recorder.head.get(b"content-length") == b"3"
    connection.say(f.headers(3, [(b":status", status), LENGTH_3]))
    assert stream_error(connection, f.data(3, b"abc", True)) == PROTOCOL_ERROR
    assert other.reset is not None


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(
    ("method", "status", "end"),
    [(b"GET", b"103", False), (b"GET", b"204", True), (b"CONNECT", b"200", False)],
)
def test_a_length_where_none_may_be_is_not_passed_on(
    method: bytes, status: bytes, end: bool, literal: bool
) -> None:
    """RFC 9110 section 8.6. `literal`: behind a part of the section that is remembered without it."""
    connection = client()
    heads = []
    for stream_id in (1, 3, 5):
        recorder = connection.request(
            RequestHead(method, b"http", b"a", b"/" if method == b"GET" else b""), end
        )
        recorder.on_informational = heads.append  # type: ignore[method-assign]
        connection.take()
        field = [(b"x-a", b"b"), (b"content-length", b"3")] if literal else [(b"content-length", b"3")]
        connection.say(f.headers(stream_id, [(b":status", status), *field], end))
        heads += [recorder.head] if recorder.head else []
    assert [head.status for head in heads] == [int(status)] * 3
    assert [head.get(b"content-length") for head in heads] == [None] * 3


def test_get_response_must_have_its_content() -> None:
    connection = client()
    connection.request()
    connection.take()
    assert stream_error(connection, f.headers(1, [*f.OK, LENGTH_3], True)) == PROTOCOL_ERROR


BAD_RESPONSES = [
    [(b":status", b"abc")],
    [(b":status", b"20")],
    [(b":status", b"0200")],
    [(b":status", b"101")],
    [*f.OK, *f.OK],
    [*f.OK, (b":path", b"/")],
    [(b"a", b"b"), *f.OK],
    [*f.OK, (b"connection", b"close")],
    [*f.OK, (b"te", b"trailers")],
    [*f.OK, (b"A", b"b")],
]


@pytest.mark.parametrize("fields", BAD_RESPONSES)
def test_malformed_responses(fields: list[tuple[bytes, bytes]]) -> None:
    connection = client()
    recorder = connection.request()
    connection.take()
    assert stream_error(connection, f.headers(1, fields)) == PROTOCOL_ERROR
    assert recorder.events == [("reset", PROTOCOL_ERROR, True, False)]


def test_informational_response_cannot_end_the_stream() -> None:
    connection = client()
    connection.request()
    connection.take()
    assert stream_error(connection, f.headers(1, [(b":status", b"100")], True)) == PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("fields", "end_stream"),
    [
        ([(b"t", b"1")], False),
        ([(b":path", b"/")], True),
        ([(b"T", b"1")], True),
        ([(b"connection", b"close")], True),
        ([(b"te", b"trailers")], True),
        ([(b"t", b"a\nb")], True),
    ],
)
def test_malformed_trailers(fields: list[tuple[bytes, bytes]], end_stream: bool) -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    assert stream_error(connection, f.headers(1, fields, end_stream)) == PROTOCOL_ERROR


def test_trailers_without_meaning_are_dropped() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    trailers = [(b"content-length", b"7"), (b"host", b"x"), (b"trailer", b"t"), (b"t", b"1")]
    connection.say(f.headers(1, trailers, True))
    assert connection.requests[0].events[-1] == ("trailers", ((b"t", b"1"),))


CREDENTIALS = (
    *(b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"),
    b"x-forwarded-client-cert",
)


@pytest.mark.parametrize("name", CREDENTIALS)
def test_trailers_say_nothing_of_who_sends_them(name: bytes) -> None:
    """What a careless application takes for a header field has been checked by nobody."""
    connection = server()
    connection.say(f.headers(1, f.POST) + f.headers(1, [(name, b"admin"), (b"t", b"1")], True))
    assert connection.requests[0].events[-1] == ("trailers", ((b"t", b"1"),))
    assert parse_trailers(b"%b: admin\r\nT: 1\r\n" % name.title(), H1Options()) == ((b"t", b"1"),)


def test_repeated_requests_share_fields_and_memo() -> None:
    connection = server()
    shared = f.block(f.GET) + b"\x90"  # accept-encoding: gzip, deflate
    connection.say(f.frame(f.HEADERS, 5, 1, shared))
    for stream_id, trace in ((3, b"1"), (5, b"2")):
        connection.say(f.frame(f.HEADERS, 5, stream_id, shared + b"\0\x05trace\x01" + trace))
    connection.say(f.frame(f.HEADERS, 5, 7, shared))
    first, *others = [x.head for x in connection.requests]
    # The first sight of a literal path is not remembered; from the second on everything is one.
    assert [x.fresh for x in others] == [((b"trace", b"1"),), ((b"trace", b"2"),), ()]
    assert others[0].fields is others[1].fields is others[2].fields
    assert others[0].memo is others[1].memo is others[2].memo
    assert first.fields == others[0].fields


AROUND = b"\x82\x86\x41\x09a.example"
OPEN = b"\x82\x86\xbe\x04"
"""Indexed fields and then a path, as clients send it that never index one."""


def test_each_path_is_judged_by_itself_although_the_fields_around_it_are_known() -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 5, 1, AROUND + b"\x84"))
    stream_id = 1

    def ask(path: bytes) -> bytes:
        nonlocal stream_id
        stream_id += 2
        return f.frame(f.HEADERS, 5, stream_id, OPEN + bytes([len(path)]) + path)

    for path in (b"/1", b"/2", b"/3"):
        assert connection.say(ask(path)) == []
    for path in (b"", b"4", b"/ 5", b"/\n", b"/#", b"/\xe9", b"*"):
        assert stream_error(connection, ask(path)) == PROTOCOL_ERROR
    assert connection.say(ask(b"/6")) == []
    assert [x.head.path for x in connection.requests] == [b"/", b"/1", b"/2", b"/3", b"/6"]
    memos = {id(x.head.memo) for x in connection.requests[2:]}
    assert len(memos) == 1


def test_a_path_among_trailers_is_refused_although_the_fields_around_it_are_known() -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 5, 1, AROUND + b"\x84"))
    for stream_id in (3, 5, 7):
        connection.say(f.frame(f.HEADERS, 5, stream_id, OPEN + b"\x02/%d" % stream_id))
    connection.say(f.frame(f.HEADERS, 4, 9, OPEN + b"\x02/9"))
    assert stream_error(connection, f.frame(f.HEADERS, 5, 9, OPEN + b"\x02/t")) == PROTOCOL_ERROR
