"""What the operator's commands end with when they cannot answer.

Raised everywhere below, printed by the verbs. The text says what happened to what; the hint, what to do.
"""

from __future__ import annotations


class OperatorError(Exception):
    """The command cannot go on."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class ApiError(OperatorError):
    """The API server refused, or did not answer (`status` 0)."""

    def __init__(self, status: int, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.status = status


class TimedOut(ApiError):
    """The API server did not answer in time: away itself, or waiting for what is behind it."""


def describe(error: OperatorError) -> str:
    """As it goes to stderr."""
    return f"error: {error.text}" + (f"\n  {error.hint}" if error.hint else "")
