"""The codec against the `h2` package, as server and as client: the same frames, the same verdict, the same
messages to the octet. Where one of them is laxer, `tests/support/h2_leniency.py` says by which rule.

`HYPOTHESIS_PROFILE=explore` looks for new cases. What it finds is judged and kept in `data/h2_found.txt`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import h2_frames as f
from tests.support.h2_differential import compare
from tests.support.h2_generators import conversations, frames, mutated, sections, sequences

FOUND = (Path(__file__).parent / "data" / "h2_found.txt").read_text().splitlines()
KEPT = [line.split(maxsplit=3) for line in FOUND if not line.startswith("#")]
SIDES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])


@pytest.mark.parametrize("case", KEPT, ids=lambda case: f"{case[0]} {case[3]}")
def test_what_was_found_is_judged_as_ever(case: list[str]) -> None:
    side, verdict, octets, _ = case
    assert compare(bytes.fromhex(octets), side == "client") is (verdict == "taken")


@SIDES
@settings(max_examples=250)
@given(st.data())
def test_same_verdict_and_messages_on_frame_sequences(client: bool, data: st.DataObject) -> None:
    compare(b"".join(data.draw(sequences(client))), client)


@SIDES
def test_same_messages_on_conversations(client: bool) -> None:
    sent = taken = 0

    @settings(max_examples=250)
    @given(conversations(client))
    def run(frames: list[bytes]) -> None:
        nonlocal sent, taken
        sent += len(frames)
        taken += len(frames) if compare(b"".join(frames), client) else 0

    run()
    assert taken > sent / 4  # most of what is sent is to be allowed


@SIDES
@settings(max_examples=250)
@given(st.data())
def test_same_verdict_and_messages_on_mutated_frames(client: bool, data: st.DataObject) -> None:
    compare(data.draw(mutated(client)), client)


@SIDES
@settings(max_examples=300)
@given(st.data())
def test_same_verdict_and_fields_on_header_sections(client: bool, data: st.DataObject) -> None:
    compare(data.draw(sections(client)), client)


@SIDES
@settings(max_examples=120)
@given(st.data(), st.lists(st.binary(max_size=60), max_size=6))
def test_nothing_that_a_peer_sends_raises(client: bool, data: st.DataObject, chunks: list[bytes]) -> None:
    connection = f.Connection(client).start()
    if client:
        for _ in range(3):
            connection.request()
    for chunk in [*data.draw(st.lists(frames(client), max_size=4)), *chunks]:
        connection.say(chunk)
    connection.codec.connection_lost("gone")
    assert connection.codec.active_streams == 0
    assert all(x.reset is not None or x.ended or not x.stream.id for x in connection.requests)
