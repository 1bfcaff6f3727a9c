"""Where the status port reads from: the parts of a control plane that have something to show.

The app fills it in; `status` and `status_metrics` read it, live, at each request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from control_plane.ca.authority import CertificateAuthority
from control_plane.ca.service import Authenticator, CertificateService
from control_plane.ca.serving import ServingCertificate
from control_plane.ca.token_review import TokenReviews
from control_plane.injector.webhook import WebhookCounts
from control_plane.model.problem import Problem
from control_plane.xds.server import DiscoveryServer


@dataclass(frozen=True, slots=True)
class StatusSources:
    discovery: DiscoveryServer
    authority: CertificateAuthority
    serving: ServingCertificate
    certificates: CertificateService
    authenticator: Authenticator
    problems: Callable[[], Sequence[Problem]]
    not_ready: Callable[[], str | None]
    """Why the control plane does not serve; None if it does."""
    webhook_not_after: Callable[[], datetime | None] = lambda: None
    """When the certificate of the webhook ends; None: there is no webhook."""
    webhook_counts: Callable[[], WebhookCounts | None] = lambda: None
    reviews: TokenReviews | None = None
    """None: there is no cluster to ask about tokens."""
