"""The rules of capture in real network namespaces, set by the command with each backend."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mesh_api.names import INBOUND_PORT, INBOUND_SOURCE, OUTBOUND_PORT, SIDECAR_USER
from tests.support.netns import FAR, PEER, POD, Namespace, arrival, original_destination, pod_and_peer

TOOLS = ("ip", "nft", "iptables-nft-restore", "iptables-legacy-restore", "setpriv")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs iproute2, nftables, iptables and util-linux"
    ),
]
BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
ANY = {4: "0.0.0.0", 6: "::"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SOURCE = dict(zip((4, 6), INBOUND_SOURCE, strict=True))
EXCLUDED = FAR
OPTIONS = ["--skip-inbound-ports", "9090,8000-8050", "--skip-outbound-ports", "7000,7100-7200"]
OPTIONS += ["--exclude-cidr", f"{EXCLUDED[4]},fd79::/64"]

Hosts = tuple[Namespace, Namespace]
ipv4_and_ipv6 = pytest.mark.parametrize("version", [4, 6])


def capture(pod: Namespace, *arguments: str, user: int | None = None) -> tuple[int, str]:
    result = pod.run(sys.executable, "-m", "pilotfish", "capture", *arguments, user=user)
    return result.returncode, result.stdout


def require(backend: str) -> None:
    if backend == "iptables-legacy" and subprocess.run(["iptables-legacy-save", "-t", "nat"]).returncode:
        pytest.skip("this kernel has no legacy iptables")


@pytest.fixture(scope="module", params=BACKENDS)
def captured(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Tests change nothing in it."""
    require(request.param)
    with pod_and_peer() as (pod, peer):
        status, text = capture(pod, "install", "--backend", request.param, *OPTIONS)
        assert status == 0, text
        yield pod, peer


@pytest.fixture(params=BACKENDS)
def fresh(request: pytest.FixtureRequest) -> Iterator[tuple[Namespace, str]]:
    """A pod without rules, and a backend."""
    require(request.param)
    with pod_and_peer() as (pod, _):
        yield pod, request.param


@ipv4_and_ipv6
def test_calls_of_the_application_arrive_at_the_outbound_port(captured: Hosts, version: int) -> None:
    pod, _ = captured
    with closing(pod.listener(LOOPBACK[version], OUTBOUND_PORT)) as sidecar:
        for address in (PEER[version], {4: "192.0.2.7", 6: "2001:db8::7"}[version]):
            for port in (1, 80, 8080, 9090, 15001, 15006, 65535):
                with closing(pod.socket(version)) as client:
                    assert arrival(sidecar, client, (address, port)) == (address, port)


@ipv4_and_ipv6
def test_calls_from_outside_arrive_at_the_inbound_port(captured: Hosts, version: int) -> None:
    pod, peer = captured
    with closing(pod.listener(ANY[version], INBOUND_PORT)) as sidecar:
        for port in (1, 80, 8080, 7999, 8051, 15001, 65535):
            with closing(peer.socket(version)) as client:
                assert arrival(sidecar, client, (POD[version], port)) == (POD[version], port)


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [9090, 8000, 8025, 8050, 15000, 15006])
def test_skipped_inbound_ports_are_reached_directly(captured: Hosts, version: int, port: int) -> None:
    pod, peer = captured
    with closing(pod.listener(ANY[version], port)) as application, closing(peer.socket(version)) as client:
        assert arrival(application, client, (POD[version], port)) == (POD[version], port)


@ipv4_and_ipv6
def test_calls_of_the_sidecar_leave_the_pod(captured: Hosts, version: int) -> None:
    pod, peer = captured
    with (
        closing(peer.listener(PEER[version], 8080)) as server,
        closing(pod.socket(version, user=SIDECAR_USER)) as client,
    ):
        assert arrival(server, client, (PEER[version], 8080)) == (PEER[version], 8080)
        assert client.getsockname()[0] == POD[version]


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [53, 7000, 7100, 7200, 15010, 15014])
def test_skipped_outbound_ports_are_called_directly(captured: Hosts, version: int, port: int) -> None:
    pod, peer = captured
    with closing(peer.listener(PEER[version], port)) as server, closing(pod.socket(version)) as client:
        assert arrival(server, client, (PEER[version], port)) == (PEER[version], port)


@ipv4_and_ipv6
def test_excluded_addresses_are_called_directly(captured: Hosts, version: int) -> None:
    pod, peer = captured
    with closing(peer.listener(EXCLUDED[version], 80)) as server, closing(pod.socket(version)) as client:
        assert arrival(server, client, (EXCLUDED[version], 80)) == (EXCLUDED[version], 80)


@ipv4_and_ipv6
@pytest.mark.parametrize("user", [0, SIDECAR_USER])
def test_loopback_is_left_alone(captured: Hosts, version: int, user: int) -> None:
    pod, _ = captured
    with (
        closing(pod.listener(LOOPBACK[version], 8080)) as application,
        closing(pod.socket(version, user=user)) as client,
    ):
        assert arrival(application, client, (LOOPBACK[version], 8080)) == (LOOPBACK[version], 8080)


@ipv4_and_ipv6
def test_an_application_that_calls_its_own_pod_stays_in_it(captured: Hosts, version: int) -> None:
    pod, _ = captured
    with closing(pod.listener(ANY[version], 8080)) as application, closing(pod.socket(version)) as client:
        assert arrival(application, client, (POD[version], 8080)) == (POD[version], 8080)


@ipv4_and_ipv6
def test_a_sidecar_that_calls_its_own_pod_arrives_at_its_inbound_port(captured: Hosts, version: int) -> None:
    pod, _ = captured
    with (
        closing(pod.listener(ANY[version], INBOUND_PORT)) as sidecar,
        closing(pod.socket(version, user=SIDECAR_USER)) as client,
    ):
        assert arrival(sidecar, client, (POD[version], 8080)) == (POD[version], 8080)


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [9090, 15000, 15001, 15006])
def test_a_sidecar_reaches_its_own_pods_skipped_ports(captured: Hosts, version: int, port: int) -> None:
    pod, _ = captured
    with (
        closing(pod.listener(ANY[version], port)) as application,
        closing(pod.socket(version, user=SIDECAR_USER)) as client,
    ):
        assert arrival(application, client, (POD[version], port)) == (POD[version], port)


@ipv4_and_ipv6
@pytest.mark.parametrize("address", [POD, LOOPBACK], ids=["pod", "loopback"])
def test_a_sidecar_reaches_its_application(captured: Hosts, version: int, address: dict[int, str]) -> None:
    pod, _ = captured
    with (
        closing(pod.listener(ANY[version], 8080)) as application,
        closing(pod.socket(version, user=SIDECAR_USER)) as client,
    ):
        client.bind((SOURCE[version], 0))
        assert arrival(application, client, (address[version], 8080)) == (address[version], 8080)


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [53, 8080])
def test_datagrams_are_left_alone_both_ways(captured: Hosts, version: int, port: int) -> None:
    pod, peer = captured
    for server_host, client_host, address in ((peer, pod, PEER), (pod, peer, POD)):
        server = server_host.socket(version, socket.SOCK_DGRAM)
        client = client_host.socket(version, socket.SOCK_DGRAM)
        with closing(server), closing(client):
            server.bind((address[version], port))
            client.sendto(b"question", (address[version], port))
            question, caller = server.recvfrom(100)
            server.sendto(b"answer", caller)
            answer, who = client.recvfrom(100)
            assert (question, answer, who[:2]) == (b"question", b"answer", (address[version], port))


def test_answers_to_calls_keep_the_address_that_was_called(captured: Hosts) -> None:
    pod, _ = captured
    with closing(pod.listener("127.0.0.1", OUTBOUND_PORT)) as sidecar, closing(pod.socket(4)) as client:
        client.connect(("192.0.2.7", 80))
        assert client.getpeername() == ("192.0.2.7", 80)
        with closing(sidecar.accept()[0]) as accepted:
            assert accepted.getsockname() == ("127.0.0.1", OUTBOUND_PORT)
            assert original_destination(accepted) == ("192.0.2.7", 80)


def all_rules(pod: Namespace) -> str:
    saves = [pod.must(f"{name}tables-legacy-save", "-t", "nat") for name in ("ip", "ip6")]
    lines = "\n".join([pod.must("nft", "-s", "list", "ruleset"), *saves]).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("#", ":")))


def test_installing_twice_is_installing_once(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    install = ["install", "--backend", backend, *OPTIONS]
    assert capture(pod, *install)[0] == 0
    once = all_rules(pod)
    assert capture(pod, *install)[0] == 0
    assert all_rules(pod) == once
    assert capture(pod, "install", "--backend", backend)[0] == 0
    changed = all_rules(pod)
    assert "7100" in once
    assert "7100" not in changed
    assert pod.must("ip", "-6", "addr", "show", "dev", "lo").count(" ::6/128") == 1


def test_remove_leaves_nothing_of_ours_and_everything_else(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    assert capture(pod, "remove") == (0, "nothing to remove: no rules of pilotfish are set\n")
    foreign = (
        f"{backend.replace('iptables', 'ip6tables')} -t nat -A OUTPUT -p tcp --dport 77 -j RETURN".split()
    )
    if backend == "nft":
        foreign = ["nft", "add table inet other { chain output { type nat hook output priority 0; } ; }"]
    pod.must(*foreign)
    before = all_rules(pod)
    assert capture(pod, "install", "--backend", backend, *OPTIONS)[0] == 0
    assert "pilotfish" in all_rules(pod).lower()
    assert capture(pod, "remove") == (
        0,
        f"removed: rules that were set with {backend}\nremoved: the sidecar's source address on lo\n",
    )
    left = all_rules(pod)
    assert "pilotfish" not in left.lower()
    # iptables-nft makes what it needs around a chain, also where its rules have gone.
    assert left == before or backend == "iptables-nft"
    assert "::6/" not in pod.must("ip", "-6", "addr", "show", "dev", "lo")
    assert capture(pod, "remove") == (0, "nothing to remove: no rules of pilotfish are set\n")


def test_what_was_set_with_another_backend_goes(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    other = BACKENDS[BACKENDS.index(backend) - 1]
    require(other)
    assert capture(pod, "install", "--backend", backend)[0] == 0
    status, text = capture(pod, "install", "--backend", other)
    assert status == 0
    assert f"removed: rules that were set with {backend} before\n" in text
    assert f"ok: {other}: " in text
    assert capture(pod, "check")[0] == 0


def test_check_says_what_it_saw(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    status, text = capture(pod, "install", "--backend", backend)
    count = 13 if backend == "nft" else 26
    proofs = (
        "ok: IPv4 connection to 192.0.2.1:20000 arrived at port 15001 with its original destination\n"
        "ok: IPv6 connection to [2001:db8::1]:20000 arrived at port 15001 with its original destination\n"
    )
    assert (status, text) == (
        0,
        f"set: {count} rules for IPv4 and IPv6 with {backend}\n"
        f"ok: {backend}: {count} rules are as they should be\n" + proofs,
    )
    # Beside a running sidecar.
    listeners = [pod.listener(LOOPBACK[version], OUTBOUND_PORT) for version in (4, 6)]
    status, text = capture(pod, "check")
    assert status == 0
    assert "ok: IPv4 connection to 192.0.2.1:20000 was accepted by who listens on port 15001\n" in text
    for listener in listeners:
        listener.close()


def test_check_sees_that_nothing_is_set(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    for listener in (None, pod.listener("127.0.0.1", OUTBOUND_PORT)):
        status, text = capture(pod, "check", "--backend", backend, "--ipv6", "off")
        assert status == 1
        assert "fail: no rules of pilotfish are set here: run `pilotfish capture install`\n" in text
        assert "fail: IPv4 connection to 192.0.2.1:20000 was not redirected to port 15001: " in text
        if listener:
            listener.close()


def delete_rule(pod: Namespace, backend: str, name: str) -> None:
    """For iptables of IPv6 alone."""
    if backend == "nft":
        lines = pod.must("nft", "-a", "list", "table", "inet", "pilotfish").splitlines()
        [line] = [line for line in lines if f"/{name}/" in line]
        chain = "inbound" if "/inbound/" in line else "outbound"
        pod.must("nft", "delete", "rule", "inet", "pilotfish", chain, "handle", line.split()[-1])
        return
    tool = backend.replace("iptables", "ip6tables")
    [line] = [line for line in pod.must(tool, "-t", "nat", "-S").splitlines() if f"/{name}/" in line]
    pod.must(tool, "-t", "nat", *line.replace("-A ", "-D ", 1).replace('"', "").split())


@pytest.mark.parametrize("name", ["outbound/capture", "inbound/capture", "outbound/sidecar", "loopback-ipv6"])
def test_check_sees_one_rule_that_is_absent(fresh: tuple[Namespace, str], name: str) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend, "--no-check")[0] == 0
    delete_rule(pod, backend, name)
    status, text = capture(pod, "check")
    assert status == 1
    [fail] = [line for line in text.splitlines() if line.startswith("fail: ") and "connection" not in line]
    assert f"{name} is absent: `pilotfish capture install`" in fail
    assert capture(pod, "install", "--backend", backend)[0] == 0


def test_check_sees_rules_that_were_flushed(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend, "--no-check")[0] == 0
    if backend == "nft":
        pod.must("nft", "flush", "table", "inet", "pilotfish")
    else:
        pod.must(backend, "-t", "nat", "-F")
    status, text = capture(pod, "check", "--backend", backend)
    assert status == 1
    assert "rule outbound/capture is absent" in text
    assert "rule inbound/capture is absent" in text
    assert "fail: IPv4 connection" in text


def test_check_sees_that_ipv6_is_missing(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend, "--ipv6", "off")[0] == 0
    assert "::6/" not in pod.must("ip", "-6", "addr", "show", "dev", "lo")
    status, text = capture(pod, "check")
    assert status == 1
    assert "fail: address ::6 is not on lo: " in text
    assert "rule outbound/loopback-ipv6 is absent" in text
    assert "ok: IPv4 connection" in text
    assert "fail: IPv6 connection" in text


@ipv4_and_ipv6
def test_without_ipv6_only_ipv4_is_captured(fresh: tuple[Namespace, str], version: int) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend)[0] == 0
    assert capture(pod, "install", "--backend", backend, "--ipv6", "off")[0] == 0
    with closing(pod.listener(LOOPBACK[version], OUTBOUND_PORT)), closing(pod.socket(version)) as client:
        # Nobody listens at the peer.
        assert client.connect_ex((PEER[version], 80)) == (0 if version == 4 else 111)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_check_sees_that_the_way_into_the_rules_is_absent(backend: str) -> None:
    require(backend)
    with pod_and_peer() as (pod, _):
        assert capture(pod, "install", "--backend", backend, "--no-check")[0] == 0
        delete_rule(pod, backend, "outbound/jump")
        status, text = capture(pod, "check")
        assert status == 1
        assert f"fail: {backend}: IPv6 table nat, chain OUTPUT: rule outbound/jump is absent" in text
        assert "fail: IPv6 connection" in text
        assert text.count("fail: ") == 2


def test_check_sees_a_rule_that_does_not_belong(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend, "--no-check")[0] == 0
    if backend == "nft":
        pod.must("nft", "insert", "rule", "inet", "pilotfish", "inbound", "tcp", "dport", "80", "return")
    else:
        pod.must(
            backend, "-t", "nat", "-I", "PILOTFISH_INBOUND", "-p", "tcp", "--dport", "80", "-j", "RETURN"
        )
    status, text = capture(pod, "check")
    assert status == 1
    [fail] = [line for line in text.splitlines() if line.startswith("fail: ")]
    assert "80" in fail
    assert "does not belong there" in fail


def test_check_proves_by_connection_what_rules_alone_do_not_show(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    assert capture(pod, "install", "--backend", backend)[0] == 0
    # Connections that are not tracked are not redirected.
    rule = "type filter hook output priority raw; ip daddr 192.0.2.0/24 notrack;"
    pod.must("nft", f"add table inet other {{ chain output {{ {rule} }} ; }}")
    status, text = capture(pod, "check")
    assert status == 1
    assert f"ok: {backend}: " in text
    assert "fail: IPv4 connection to 192.0.2.1:20000 was not redirected to port 15001: " in text


def test_the_sidecars_user_can_check_without_privileges(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    status, text = capture(pod, "check", user=SIDECAR_USER)
    assert status == 1
    assert "note: rules not looked at: " in text
    assert f"fail: IPv4 connection to {POD[4]}:" in text
    assert capture(pod, "install", "--backend", backend, "--no-check")[0] == 0
    for user, port in ((SIDECAR_USER, INBOUND_PORT), (SIDECAR_USER + 1, OUTBOUND_PORT)):
        status, text = capture(pod, "check", user=user)
        assert status == 0
        assert text.count(f" arrived at port {port} with its original destination\n") == 2


def test_addresses_that_are_not_captured_are_not_tried(fresh: tuple[Namespace, str]) -> None:
    pod, backend = fresh
    excluded = ["--exclude-cidr", "0.0.0.0/0", "--exclude-cidr", "2001:db8::/33"]
    status, text = capture(pod, "install", "--backend", backend, *excluded)
    assert status == 0
    assert "note: IPv4 connection not tried: no address and port that would be captured\n" in text
    assert "ok: IPv6 connection to [2001:db8:ffff::1]:20000 arrived" in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_capabilities_are_enough(backend: str) -> None:
    require(backend)
    few = ["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--no-new-privs"]
    install = [sys.executable, "-m", "pilotfish", "capture", "install", "--backend", backend]
    with pod_and_peer() as (pod, _):
        result = pod.run(*few, *install)
        assert result.returncode == 0, result.stdout


def test_without_the_capability_the_error_says_so() -> None:
    with pod_and_peer() as (pod, _):
        for arguments in (["install"], ["install", "--ipv6", "off"], ["remove"]):
            status, text = capture(pod, *arguments, user=SIDECAR_USER)
            assert status == 1
            assert text.startswith("error: ")
            assert "needs root with the capability NET_ADMIN" in text


def broken(directory: Path, *tools: str) -> list[str]:
    """A command before a command: tools of these names fail as on a kernel without their modules."""
    for tool in tools:
        fake = directory / tool
        fake.write_text(
            "#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2; exit 1\n"
        )
        fake.chmod(0o755)
    return ["env", f"PATH={directory}:{os.environ['PATH']}", sys.executable, "-m", "pilotfish", "capture"]


def test_where_nftables_does_not_work_iptables_is_used(tmp_path: Path) -> None:
    with pod_and_peer() as (pod, _):
        result = pod.run(*broken(tmp_path, "nft"), "install")
        assert result.returncode == 0, result.stdout
        lines = result.stdout.splitlines()
        assert lines[0].startswith("not used: nft: nft -f -: Error: Could not process rule: Operation not")
        assert lines[1:3] == [
            "set: 26 rules for IPv4 and IPv6 with iptables-nft",
            "ok: iptables-nft: 26 rules are as they should be",
        ]
        removed = pod.run(*broken(tmp_path, "nft"), "remove").stdout
        assert removed.startswith("removed: rules that were set with iptables-nft\n")


def test_where_nothing_works_the_error_names_every_tool(tmp_path: Path) -> None:
    with pod_and_peer() as (pod, _):
        assert capture(pod, "install", "--skip-inbound-ports", "99")[0] == 0
        before = all_rules(pod)
        tools = ("nft", "iptables-nft-restore", "iptables-legacy-restore")
        result = pod.run(*broken(tmp_path, *tools), "install")
        assert result.returncode == 1
        assert result.stdout.startswith("error: no backend can set the rules:\n  nft: nft -f -: Error: ")
        assert "\n  iptables-nft: " in result.stdout
        assert "\n  iptables-legacy: " in result.stdout
        assert "the kernel of the node lacks modules: nf_tables" in result.stdout
        assert all_rules(pod) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pod_without_ipv6_has_rules_for_ipv4(backend: str) -> None:
    require(backend)
    with pod_and_peer() as (pod, _):
        pod.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        status, text = capture(pod, "install", "--backend", backend)
        assert status == 0
        assert f"set: 13 rules for IPv4 with {backend}\n" in text
        assert "IPv6" not in text
        status, text = capture(pod, "install", "--backend", backend, "--ipv6", "on")
        assert (status, text) == (
            1,
            "error: --ipv6 on: no interface here has an IPv6 address; `auto` goes by what is there\n",
        )
        assert capture(pod, "remove") == (0, f"removed: rules that were set with {backend}\n")


def without_loopback_ipv6(pod: Namespace) -> None:
    pod.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pod_whose_loopback_has_no_ipv6_is_captured_and_refuses_ipv6(backend: str) -> None:
    require(backend)
    with pod_and_peer() as (pod, peer):
        without_loopback_ipv6(pod)
        pod.ip("-6", "addr", "flush", "dev", "eth0", "scope", "global")
        for host, address in ((pod, "fe80::2/64"), (peer, "fe80::1/64")):
            host.ip("-6", "addr", "add", address, "dev", "eth0", "nodad")
        status, text = capture(pod, "install", "--backend", backend)
        assert status == 0, text
        assert "note: lo has no IPv6 address: connections over IPv6 are refused\n" in text
        assert "ok: IPv4 connection" in text
        assert capture(pod, "check", "--backend", backend)[0] == 0
        with closing(pod.listener("::", 8080)), closing(peer.socket(6)) as client:
            with peer.entered():
                interface = socket.if_nametoindex("eth0")
            assert client.connect_ex(("fe80::2", 8080, 0, interface)) == 111
        assert capture(pod, "remove") == (0, f"removed: rules that were set with {backend}\n")


def test_a_pod_that_needs_ipv6_and_has_none_on_loopback_does_not_start() -> None:
    with pod_and_peer() as (pod, _):
        without_loopback_ipv6(pod)
        status, text = capture(pod, "install")
        assert status == 1
        assert "fail: lo has no IPv6 address, and the pod has one: nothing would answer over IPv6; " in text


def test_wrong_options_change_nothing() -> None:
    with pod_and_peer() as (pod, _):
        assert capture(pod, "install", *OPTIONS)[0] == 0
        before = all_rules(pod)
        for wrong in (["--skip-inbound-ports", "9090,x"], ["--exclude-cidr", "10.0.0.1/8"], ["--ipv6", "no"]):
            assert capture(pod, "install", *wrong)[0] == 2
        assert all_rules(pod) == before
