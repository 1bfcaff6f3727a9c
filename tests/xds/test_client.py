"""The driver of ADS: streams, pauses, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

from sidecar.config.resources import AdsConfig, Node
from sidecar.config.type_urls import CLUSTER
from sidecar.net.grpc_messages import GrpcError
from sidecar.protocol.events import Field
from sidecar.xds.ads import AdsClient
from sidecar.xds.client import XdsClient
from sidecar.xds.delta import DeltaVariant
from tests.support.discovery import cluster, delta_requests, delta_response


class Stop(Exception):
    pass


class Stream:
    """Answers with the given messages, then ends."""

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages
        self.sent: list[bytes] = []
        self.cancelled = False

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for message in self.messages:
            await asyncio.sleep(0)
            yield message
        await asyncio.sleep(0)


class Channel:
    """Hands out streams in order; None refuses."""

    def __init__(self, *streams: Stream | None) -> None:
        self.streams = list(streams)
        self.calls: list[tuple[str, Sequence[Field]]] = []

    async def stream(self, path: str, metadata: Sequence[Field] = ()) -> Stream:
        self.calls.append((path, metadata))
        stream = self.streams.pop(0)
        if stream is None:
            raise GrpcError(14, "refused")
        return stream


def run(channel: Channel, config: AdsConfig, naps: int) -> tuple[AdsClient, XdsClient, list[float]]:
    """Runs the client until it has paused `naps` times."""
    ads = AdsClient(Node("n"), DeltaVariant())
    ads.subscribe(CLUSTER, ["a"])
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == naps:
            raise Stop

    async def main() -> XdsClient:
        client = XdsClient(config, channel, ads, Random(1), sleep)
        try:
            await client.run()
        except Stop:
            return client
        raise AssertionError

    return ads, asyncio.run(main()), pauses


def test_requests_and_replies_go_out_on_the_stream() -> None:
    stream = Stream([delta_response("n1", {"a": ("1", cluster("a"))})])
    channel = Channel(stream)
    ads, client, _ = run(channel, AdsConfig("cp"), 1)
    assert channel.calls == [
        ("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", ())
    ]
    subscribe, ack = delta_requests(stream.sent)
    assert (list(subscribe.resource_names_subscribe), ack.response_nonce) == (["a"], "n1")
    assert (stream.cancelled, ads.connected) == (True, False)
    assert client.last_error == "the control plane ended the stream"


def test_state_of_the_world_uses_its_own_method() -> None:
    channel = Channel(Stream([]))
    run(channel, AdsConfig("cp", delta=False), 1)
    assert channel.calls[0][0].endswith("/StreamAggregatedResources")


def test_pauses_double_up_to_ten_seconds() -> None:
    _, client, pauses = run(Channel(*[None] * 7), AdsConfig("cp"), 7)
    for pause, longest in zip(pauses, [1, 2, 4, 8, 10, 10, 10], strict=True):
        assert longest / 2 <= pause <= longest
    assert client.last_error == str(GrpcError(14, "refused"))


def test_a_response_resets_the_pause() -> None:
    good = Stream([delta_response("n1", {})])
    _, _, pauses = run(Channel(None, None, good), AdsConfig("cp"), 3)
    assert pauses[1] > 1.0
    assert pauses[2] <= 1.0


def test_the_token_is_read_for_each_stream(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    channel = Channel(Stream([]), Stream([]))
    run(channel, AdsConfig("cp", token_file=str(token)), 1)
    token.write_text("def")
    run(channel, AdsConfig("cp", token_file=str(token)), 1)
    assert [call[1] for call in channel.calls] == [
        ((b"authorization", b"Bearer abc"),),
        ((b"authorization", b"Bearer def"),),
    ]


def test_a_missing_token_is_an_error_that_is_tried_again(tmp_path: Path) -> None:
    _, client, _ = run(Channel(), AdsConfig("cp", token_file=str(tmp_path / "none")), 2)
    assert "No such file" in client.last_error


def test_bytes_that_are_no_response_end_the_stream() -> None:
    stream = Stream([b"\xff\xff"])
    _, client, _ = run(Channel(stream), AdsConfig("cp"), 1)
    assert client.last_error.startswith("a response is no valid protobuf")
    assert stream.cancelled
