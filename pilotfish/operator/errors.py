"""What the operator's commands end with when they cannot answer.

Raised everywhere below, printed by the verbs. The text says what happened to what; the hint, what to do; the
link, where more is written.
"""

from __future__ import annotations

RIGHTS_PAGE = "docs/operations.md#rights"
API_SERVER_PAGE = "docs/troubleshooting.md#the-api-server-does-not-answer-a-command"
NOT_READY_PAGE = "docs/troubleshooting.md#the-control-plane-is-not-ready"
OUT_OF_REACH_PAGE = "docs/troubleshooting.md#the-api-server-cannot-reach-a-pod"
WEBHOOK_PAGE = "docs/troubleshooting.md#the-webhook-fails"
"""Pages and headings in this repository."""


class OperatorError(Exception):
    """The command cannot go on."""

    def __init__(self, text: str, hint: str = "", link: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.link = link


class ApiError(OperatorError):
    """The API server refused, or did not answer (`status` 0)."""

    def __init__(self, status: int, text: str, hint: str = "", link: str = API_SERVER_PAGE) -> None:
        super().__init__(text, hint, link)
        self.status = status


class TimedOut(ApiError):
    """The API server did not answer in time: away itself, or waiting for what is behind it."""


def describe(error: OperatorError) -> str:
    """As it goes to stderr."""
    return "\n  ".join(part for part in (f"error: {error.text}", error.hint, error.link) if part)
