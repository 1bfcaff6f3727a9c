"""`pilotfish capture install|check|remove`: the verb, run by the init container of a captured pod.

Prints facts, one a line. Exit status 0, 1 (not done, or not as it should be), 2 (the command line is wrong).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from mesh_api.names import ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, SIDECAR_USER
from pilotfish.capture import apply
from pilotfish.capture.backends import CHOICES
from pilotfish.capture.check import check
from pilotfish.capture.host import CaptureError, has_ipv6
from pilotfish.capture.settings import (
    CaptureSettings,
    merge_networks,
    merge_ports,
    parse_networks,
    parse_ports,
)

_WORDS = {True: "ok", False: "fail", None: "note"}
_Part = TypeVar("_Part")


def run_capture(arguments: Sequence[str]) -> int:
    """The verb; returns its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.action == "remove":
            print("\n".join(apply.remove()))
            return 0
        try:
            settings = _settings(given)
        except ValueError as error:
            parser.error(str(error))
        if given.action == "install":
            print("\n".join(apply.install(settings, given.backend)), flush=True)
            if given.no_check:
                return 0
        facts = check(settings, given.backend)
    except CaptureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{_WORDS[fact.ok]}: {fact.text}" for fact in facts))
    if all(fact.ok is None for fact in facts):
        print("fail: nothing could be looked at")
        return 1
    return 1 if any(fact.ok is False for fact in facts) else 0


def _settings(given: argparse.Namespace) -> CaptureSettings:
    if given.ipv6 == "on" and not has_ipv6():
        raise CaptureError("--ipv6 on: no interface here has an IPv6 address; `auto` goes by what is there")
    return CaptureSettings(
        outbound_port=given.outbound_port,
        inbound_port=given.inbound_port,
        admin_port=given.admin_port,
        proxy_user=given.proxy_uid,
        skip_inbound_ports=merge_ports(port for ports in given.skip_inbound_ports for port in ports),
        skip_outbound_ports=merge_ports(port for ports in given.skip_outbound_ports for port in ports),
        excluded=merge_networks(network for networks in given.exclude_cidr for network in networks),
        ipv6=given.ipv6 == "on" or (given.ipv6 == "auto" and has_ipv6()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pilotfish capture",
        description="Redirect the TCP connections of this network namespace to its sidecar.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("remove", help="remove all rules, whatever set them")
    for name, text in (
        ("install", "set the rules in place of earlier ones, and check them"),
        ("check", "compare the rules in force with what install would set; try a connection"),
    ):
        _add_options(actions.add_parser(name, help=text, description=text))
    install = actions.choices["install"]
    install.add_argument("--no-check", action="store_true", help="do not check at the end")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--outbound-port", type=int, default=OUTBOUND_PORT, metavar="PORT")
    add("--inbound-port", type=int, default=INBOUND_PORT, metavar="PORT")
    add("--admin-port", type=int, default=ADMIN_PORT, metavar="PORT", help="never captured")
    add("--proxy-uid", type=int, default=SIDECAR_USER, metavar="UID", help="user of the sidecar")
    for direction in ("inbound", "outbound"):
        add(
            f"--skip-{direction}-ports",
            type=_argument(parse_ports),
            action="append",
            default=[],
            metavar="PORTS",
            help="not captured: 9090,22,8000-8100",
        )
    add(
        "--exclude-cidr",
        type=_argument(parse_networks),
        action="append",
        default=[],
        metavar="CIDR",
        help="destinations that are not captured: 10.0.0.0/8,fd00::/8",
    )
    add("--backend", choices=CHOICES, default="auto", help="auto: nft, or iptables where it cannot be")
    add("--ipv6", choices=("auto", "on", "off"), default="auto", help="auto: where an interface has it")


def _argument(parse: Callable[[str], _Part]) -> Callable[[str], _Part]:
    """Of a ValueError argparse would show no text."""

    def parsed(text: str) -> _Part:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
