"""Reading one Kubernetes object field by field: types and required fields checked, every error with its path.

`objects` and `routes` read through it, so that a mistake names the field and what belongs there. It
never guesses: a value of the wrong type is an error, as it is for a cluster's API server.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping

Path = tuple[str | int, ...]

_MISSING = object()
_DURATION = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_DURATION_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def path_text(path: Path) -> str:
    """`("spec", "rules", 0)` as `spec.rules[0]`; a key with dots is put in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "." in part:
            text += f"[{part!r}]"
        else:
            text += f".{part}" if text else part
    return text


class FieldError(Exception):
    """A field that cannot be used. `path` leads to it; the message says what belongs there."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path_text(path)}: {message}" if path else message)
        self.path = path
        self.message = message


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        dict: "a mapping",
        list: "a list",
    }
    return names.get(type(value), type(value).__name__)


class Fields:
    """A mapping in a Kubernetes object, with its path. null and absent are the same, as in Kubernetes."""

    __slots__ = ("path", "value")

    def __init__(self, value: object, path: Path = ()) -> None:
        if not isinstance(value, Mapping):
            raise FieldError(path, f"expected a mapping, found {_kind(value)}")
        self.value: Mapping[str, object] = value
        self.path = path

    def __repr__(self) -> str:
        return f"Fields({path_text(self.path)}: {', '.join(map(str, self.value))})"

    def error(self, name: str | None, message: str) -> FieldError:
        """For the caller to raise: about the field `name`, or about the mapping itself."""
        return FieldError(self.path if name is None else (*self.path, name), message)

    def has(self, name: str) -> bool:
        return self.value.get(name) is not None

    def only(self, allowed: Collection[str]) -> None:
        """Raises for a field outside `allowed`: a slip of the pen must not silently do nothing."""
        for name in self.value:
            if name not in allowed:
                close = difflib.get_close_matches(str(name), allowed, 1)
                hint = (
                    f"; did you mean {close[0]!r}?"
                    if close
                    else f"; known here: {', '.join(sorted(allowed))}"
                )
                raise self.error(str(name), f"unknown field{hint}")

    def _get(self, name: str, default: object, kind: type, what: str) -> object:
        value = self.value.get(name)
        if value is None:
            if default is _MISSING:
                raise self.error(name, f"is required: {what}")
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            hint = "; quote it" if kind is str and not isinstance(value, (dict, list)) else ""
            raise self.error(name, f"expected {what}, found {_kind(value)}{hint}")
        return value

    def text(self, name: str, default: object = _MISSING) -> str:
        value = self._get(name, default, str, "a text")
        if value == "" and default is _MISSING:
            raise self.error(name, "is required: a text, and it is empty")
        return str(value)

    def choice(self, name: str, allowed: Collection[str], default: object = _MISSING) -> str:
        names = ", ".join(filter(None, allowed))
        value = str(self._get(name, default, str, f"one of {names}"))
        if value not in allowed:
            raise self.error(name, f"is {value!r}; expected one of {names}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str, default: object = _MISSING) -> str:
        value = self.text(name, default)
        if self.has(name) and not pattern.fullmatch(value):
            raise self.error(name, f"is {value!r}; expected {what}")
        return value

    def integer(self, name: str, low: int, high: int, default: object = _MISSING) -> int:
        value = self._get(name, default, int, f"a number from {low} to {high}")
        if not isinstance(value, int):
            raise TypeError(f"the default of {name} is {value!r}, not a number")
        if self.has(name) and not low <= value <= high:
            raise self.error(name, f"is {value}; expected a number from {low} to {high}")
        return value

    def port(self, name: str, default: object = _MISSING) -> int:
        return self.integer(name, 1, 65535, default)

    def duration(self, name: str, default: float = 0.0) -> float:
        """Gateway API's form of a duration (GEP-2257), in seconds."""
        text = self.matching(name, _DURATION, "a duration such as 500ms, 10s or 1h30m", "")
        if not text:
            return default
        return sum(int(number) * _UNIT[unit] for number, unit in _DURATION_PART.findall(text))

    def boolean(self, name: str, default: bool) -> bool:
        return bool(self._get(name, default, bool, "true or false"))

    def mapping(self, name: str) -> Fields:
        """Empty when absent."""
        return Fields(self._get(name, {}, dict, "a mapping"), (*self.path, name))

    def items(self, name: str) -> list[object]:
        """The list, empty when absent."""
        value = self._get(name, [], list, "a list")
        return value if isinstance(value, list) else []

    def mappings(self, name: str) -> Iterator[Fields]:
        """A list whose items are mappings; nothing when absent."""
        for index, item in enumerate(self.items(name)):
            yield Fields(item, (*self.path, name, index))

    def texts(self, name: str) -> list[str]:
        found = self.items(name)
        for index, item in enumerate(found):
            if not isinstance(item, str):
                raise FieldError((*self.path, name, index), f"expected a text, found {_kind(item)}")
        return [str(item) for item in found]
