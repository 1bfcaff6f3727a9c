"""Responses joined from encoded parts are what protobuf itself would read and write."""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.discovery import Resource
from control_plane.xds.wire import encode_delta, encode_sotw

TEXT = st.text(max_size=200)
BODY = st.binary(max_size=40_000) | st.just(b"")
RESOURCES = st.lists(st.tuples(TEXT, st.builds(Resource, TEXT, BODY)), max_size=5)


@given(TEXT, TEXT, TEXT, RESOURCES)
def test_a_sotw_response_reads_as_the_message_it_stands_for(
    url: str, version: str, nonce: str, resources: list[tuple[str, Resource]]
) -> None:
    expected = discovery_pb2.DiscoveryResponse(
        version_info=version,
        type_url=url,
        nonce=nonce,
        resources=[Any(type_url=url, value=resource.body) for _, resource in resources],
    )
    data = encode_sotw(url, version, nonce, [resource for _, resource in resources])
    assert discovery_pb2.DiscoveryResponse.FromString(data) == expected


@given(TEXT, TEXT, TEXT, RESOURCES, st.lists(TEXT, max_size=5))
def test_a_delta_response_reads_as_the_message_it_stands_for(
    url: str, version: str, nonce: str, resources: list[tuple[str, Resource]], removed: list[str]
) -> None:
    expected = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=url,
        nonce=nonce,
        removed_resources=removed,
        resources=[
            discovery_pb2.Resource(
                name=name, version=resource.version, resource=Any(type_url=url, value=resource.body)
            )
            for name, resource in resources
        ],
    )
    data = encode_delta(url, version, nonce, resources, removed)
    assert discovery_pb2.DeltaDiscoveryResponse.FromString(data) == expected
