"""SPIFFE ids of workloads: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT` (SPIFFE-ID, section 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_PATTERN = re.compile(rf"spiffe://([a-z0-9._-]{{1,255}})/ns/({_LABEL})/sa/({_LABEL})")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A workload's identity: a Kubernetes service account in a trust domain."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, uri: str) -> SpiffeId:
        """Raises ValueError, naming the form that is expected."""
        match = _PATTERN.fullmatch(uri)
        if match is None:
            form = "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
            raise ValueError(f"not a mesh identity: {uri!r}; expected {form}")
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
