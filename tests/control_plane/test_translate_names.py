"""Which names mean which port of which service, and to whom."""

from __future__ import annotations

import pytest

from control_plane.model.service import Service, ServiceKey
from control_plane.translate.names import (
    PodTarget,
    Target,
    address_name,
    address_of,
    canonical,
    inbound_cluster_name,
    listener_names,
    parse_authority,
    parse_canonical,
    parse_pod_authority,
    pod_listener_names,
)

USERS = ServiceKey("shop", "users")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("users:80", Target(ServiceKey("blog", "users"), 80)),
        ("users.shop:80", Target(USERS, 80)),
        ("users.shop.svc:80", Target(USERS, 80)),
        ("users.shop.svc.cluster.local:80", Target(USERS, 80)),
        ("users.shop.svc.cluster.local", None),
        ("users.shop.pod.cluster.local:80", None),
        ("users.cluster.local:80", None),
        ("a.users.shop.svc.cluster.local:80", None),
        ("10.0.0.1:80", None),
        ("[fd00::1]:80", None),
        ("users.shop:080", None),
        ("users.shop:+80", None),
        ("users.shop:٨٠", None),
        (".shop:80", None),
        (":80", None),
        ("users", None),
        ("*", None),
        ("", None),
    ],
)
def test_an_authority_is_read_relative_to_the_callers_namespace(name: str, expected: Target | None) -> None:
    assert parse_authority(name, "blog", "cluster.local") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("users.shop.svc.cluster.local:80", Target(USERS, 80)),
        ("users.shop:80", None),
        ("users.svc.cluster.local:80", None),
        ("users.shop.svc.cluster.local:0080", None),
        ("users.shop.svc.cluster.local:", None),
    ],
)
def test_a_canonical_name_has_one_form(name: str, expected: Target | None) -> None:
    assert parse_canonical(name, "cluster.local") == expected
    if expected is not None:
        assert canonical(expected, "cluster.local") == name


def test_a_service_is_asked_for_by_four_names_and_its_cluster_ips() -> None:
    service = Service("shop", "users", (), ("10.0.0.7", "fd00::7"))
    assert list(listener_names(service, 80, "mesh.example")) == [
        "users:80",
        "users.shop:80",
        "users.shop.svc:80",
        "users.shop.svc.mesh.example:80",
        "10.0.0.7:80",
        "[fd00::7]:80",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("db-0.users:80", PodTarget(ServiceKey("blog", "users"), "db-0", 80)),
        ("db-0.users.shop:80", PodTarget(USERS, "db-0", 80)),
        ("db-0.users.shop.svc:80", PodTarget(USERS, "db-0", 80)),
        ("db-0.users.shop.svc.cluster.local:80", PodTarget(USERS, "db-0", 80)),
        ("users:80", None),
        ("users.shop.svc:80", None),
        ("users.shop.svc.cluster.local:80", None),
        ("a.db-0.users.shop.svc.cluster.local:80", None),
        ("db-0.cluster.local:80", None),
        ("10.0.0.1:80", None),
        ("[fd00::1]:80", None),
        ("db-0..shop:80", None),
        ("db-0.users.shop", None),
        ("", None),
    ],
)
def test_a_replicas_own_name_is_read_relative_to_the_callers_namespace(
    name: str, expected: PodTarget | None
) -> None:
    assert parse_pod_authority(name, "blog", "cluster.local") == expected


def test_a_replica_is_asked_for_by_four_names_that_all_lead_back_to_it() -> None:
    names = list(pod_listener_names(USERS, "db-0", 80, "mesh.example"))
    assert names == [
        "db-0.users:80",
        "db-0.users.shop:80",
        "db-0.users.shop.svc:80",
        "db-0.users.shop.svc.mesh.example:80",
    ]
    assert {parse_pod_authority(name, "shop", "mesh.example") for name in names} == {
        PodTarget(USERS, "db-0", 80)
    }


@pytest.mark.parametrize(("name", "address"), [("10.0.0.7:80", "10.0.0.7"), ("[fd00::7]:80", "fd00::7")])
def test_addresses_are_taken_out_of_their_brackets_and_put_in(name: str, address: str) -> None:
    assert address_of(name) == (address, 80)
    assert address_name(address, 80) == name


def test_other_text_is_no_address() -> None:
    assert address_of("nonsense") is None


def test_the_inbound_cluster_is_named_by_port_and_address() -> None:
    assert inbound_cluster_name("127.0.1.1", 8080) == "inbound|8080|127.0.1.1"
