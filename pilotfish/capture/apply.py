"""Sets and removes the rules of capture; called by `command.py`. Never leaves two backends with rules."""

from __future__ import annotations

from pilotfish.capture.backends import Backend, backends, count_rules
from pilotfish.capture.host import (
    CaptureError,
    add_source_address,
    has_loopback_ipv6,
    remove_source_address,
)
from pilotfish.capture.settings import CaptureSettings

_MODULES = "nf_tables, nft_redir and nft_fib_inet, or iptable_nat, xt_REDIRECT, xt_owner and xt_multiport"


def install(settings: CaptureSettings, choice: str) -> list[str]:
    """Sets the rules with the first backend that can; returns what was done, one fact a line.

    Raises CaptureError when none can; then what was there before is in force.
    """
    facts = []
    backend, failures = _first_that_can(settings, choice)
    facts += [f"not used: {failure}" for failure in failures]
    count = count_rules(backend.expected(settings))
    versions = " and ".join(f"IPv{version}" for version in settings.versions)
    facts.append(f"set: {count} rules for {versions} with {backend.name}")
    for other in backends("auto"):
        if other.name != backend.name and other.is_installed() and other.remove():
            facts.append(f"removed: rules that were set with {other.name} before")
    if not settings.ipv6:
        remove_source_address()
    return facts


def remove() -> list[str]:
    """Removes all that `install` sets, whichever backend set it; returns facts, at least one."""
    installed = [backend for backend in backends("auto") if backend.is_installed()]
    if not installed:
        raise CaptureError("neither nft nor iptables is installed: rules cannot be looked at")
    facts = [f"removed: rules that were set with {backend.name}" for backend in installed if backend.remove()]
    if remove_source_address():
        facts.append("removed: the sidecar's source address on lo")
    return facts or ["nothing to remove: no rules of pilotfish are set"]


def _first_that_can(settings: CaptureSettings, choice: str) -> tuple[Backend, list[str]]:
    if settings.ipv6 and has_loopback_ipv6():
        # First, because without it the rules would cut the application off.
        add_source_address()
    failures = []
    for backend in backends(choice):
        try:
            backend.install(settings)
        except CaptureError as error:
            failures.append(f"{backend.name}: {error}")
        else:
            return backend, failures
    raise CaptureError(
        "no backend can set the rules:\n  "
        + "\n  ".join(failures)
        + f"\nWhere the tool is there and permitted, the kernel of the node lacks modules: {_MODULES}"
    )
