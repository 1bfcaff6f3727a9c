"""A protobuf message together with its path in the file: how every decoder reads, and how it complains.

Used by the other modules of this package. A `View` never raises for what a user wrote: it notes the error
with its full path in the shared `Report` and returns something harmless, so that one run names every error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import BoolValue
from xds.type.v3 import typed_struct_pb2

T = TypeVar("T")

_ANY = "google.protobuf.Any"
_TYPED_STRUCT: str = typed_struct_pb2.TypedStruct.DESCRIPTOR.full_name


class ConfigError(ValueError):
    """Configuration that cannot be used. `errors` holds one text for each thing that is wrong, each
    starting with the path of the field."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


class Report:
    """What came up while decoding: errors, and paths of fields that are accepted without effect."""

    __slots__ = ("errors", "without_effect")

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.without_effect: list[str] = []

    def raise_if_wrong(self) -> None:
        """Raises `ConfigError` with all errors noted so far."""
        if self.errors:
            raise ConfigError(self.errors)

    def __repr__(self) -> str:
        return f"<Report errors={len(self.errors)} without_effect={len(self.without_effect)}>"


class Fields:
    """The fields of one message type that mean something here; all others are errors when set.

    `implemented`: read by the decoder. `descriptive`: change no traffic, or ask for what always happens
    here; listed as without effect. `off`: switches of type BoolValue that must be false.
    `hints`: what to do instead, by field. Names separated by spaces.
    """

    __slots__ = ("descriptive", "hints", "implemented", "off")

    def __init__(
        self, implemented: str, descriptive: str = "", off: str = "", hints: Mapping[str, str] | None = None
    ) -> None:
        self.implemented = frozenset(implemented.split())
        self.descriptive = frozenset(descriptive.split())
        self.off = frozenset(off.split())
        self.hints = dict(hints or {})


class View:
    """One message and where it stands in the file."""

    __slots__ = ("message", "path", "report")

    def __init__(self, message: Any, path: str, report: Report, fields: Fields | None = None) -> None:
        self.message = message
        self.path = path
        self.report = report
        if fields is not None:
            self.check(fields)

    def check(self, fields: Fields) -> View:
        """Complain about every field that is set and that `fields` does not know."""
        for descriptor, value in self.message.ListFields():
            name = descriptor.name
            if name in fields.implemented or (name in fields.off and not _is_on(value)):
                continue
            if name in fields.descriptive:
                self.without_effect(name)
            else:
                self.error(f"not supported; {fields.hints.get(name, 'remove it')}", name)
        return self

    def at(self, name: str = "") -> str:
        """The path of a field of this message; of the message itself without a name."""
        if not name:
            return self.path
        return f"{self.path}.{name}" if self.path else name

    def error(self, text: str, name: str = "") -> None:
        self.report.errors.append(f"{self.at(name)}: {text}")

    def without_effect(self, name: str = "") -> None:
        self.report.without_effect.append(self.at(name))

    # --- parts ----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """True when a message field is set, or a member of a oneof."""
        return bool(self.message.HasField(name))

    def which(self, oneof: str) -> str | None:
        """Name of the member that is set."""
        name: str | None = self.message.WhichOneof(oneof)
        return name

    def sub(self, name: str, fields: Fields | None = None) -> View:
        """A message field; an empty message when it is not set."""
        return View(getattr(self.message, name), self.at(name), self.report, fields)

    def subs(self, name: str, fields: Fields | None = None) -> Iterator[View]:
        """The messages of a repeated field."""
        for index, message in enumerate(getattr(self.message, name)):
            yield View(message, f"{self.at(name)}[{index}]", self.report, fields)

    def entries(self, name: str) -> Iterator[tuple[str, View]]:
        """The entries of a map from strings to messages, by key."""
        values = getattr(self.message, name)
        for key in sorted(values):
            yield key, View(values[key], f'{self.at(name)}["{key}"]', self.report)

    def any(self, name: str) -> tuple[str, View | None]:
        """The type name in an Any (or in the TypedStruct in it), and the message when the type is known
        to this process. ("", None) when the field is not set."""
        value = self.message if not name else getattr(self.message, name)
        type_name = value.type_url.rpartition("/")[2]
        if not type_name:
            return "", None
        message = self._parse(type_name, value.value, name)
        if message is not None and type_name == _TYPED_STRUCT:
            struct: Any = message
            type_name = struct.type_url.rpartition("/")[2]
            message = self._from_struct(type_name, struct.value, name)
        return type_name, None if message is None else View(message, self.at(name), self.report)

    def _parse(self, type_name: str, body: bytes, name: str) -> Message | None:
        message = known_message(type_name)
        if message is None:
            return None
        try:
            message.ParseFromString(body)
        except DecodeError:
            self.error(f"the bytes are no valid {type_name}; the sender is broken", name)
        return message

    def _from_struct(self, type_name: str, struct: Any, name: str) -> Message | None:
        message = known_message(type_name)
        if message is None:
            return None
        try:
            json_format.ParseDict(json_format.MessageToDict(struct), message)
        except json_format.ParseError as error:
            self.error(f"no valid {type_name}: {error}", name)
        return message

    # --- values ---------------------------------------------------------------------------------

    def text(self, name: str) -> str:
        """A string, "" when not set."""
        return str(getattr(self.message, name))

    def required(self, name: str) -> str:
        """A string that must not be empty."""
        value = self.text(name)
        if not value:
            self.error("required", name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(getattr(self.message, name))

    def flag(self, name: str, default: bool = False) -> bool:
        """A bool or BoolValue."""
        value = getattr(self.message, name)
        if isinstance(value, bool):
            return value
        return bool(value.value) if self.has(name) else default

    def number(self, name: str, default: int, low: int = 0, high: int = 0xFFFFFFFF) -> int:
        """An integer or its wrapper, `default` when not set (a plain integer: when 0)."""
        value = getattr(self.message, name)
        if not isinstance(value, int):
            if not self.has(name):
                return default
            value = value.value
        elif value == 0:
            return default
        return self.in_range(int(value), low, high, name)

    def in_range(self, value: int, low: int, high: int, name: str) -> int:
        if not low <= value <= high:
            self.error(f"must be from {low} to {high}, not {value}", name)
            return low
        return value

    def percent(self, name: str, default: float) -> float:
        """A `type.v3.Percent` from 0 to 100."""
        if not self.has(name):
            return default
        value = float(getattr(self.message, name).value)
        if not 0.0 <= value <= 100.0:
            self.error(f"must be from 0 to 100, not {value:g}", name)
            return default
        return value

    def seconds(self, name: str, default: float, positive: bool = False) -> float:
        """A Duration in seconds; `positive`: zero is an error too."""
        if not self.has(name):
            return default
        duration = getattr(self.message, name)
        value: float = duration.seconds + duration.nanos / 1e9
        if value < 0 or (positive and value == 0):
            self.error(f"must be {'more than 0s' if positive else 'at least 0s'}, not {value:g}s", name)
            return default
        return value

    def choice(self, name: str, options: Mapping[str, T], default: T) -> T:
        """An enum value, translated; one that is not in `options` is an error."""
        descriptor = self.message.DESCRIPTOR.fields_by_name[name].enum_type
        number = getattr(self.message, name)
        value = descriptor.values_by_number.get(number)
        label = str(number) if value is None else value.name
        if label not in options:
            self.error(f"{label} is not supported; supported are {', '.join(options)}", name)
            return default
        return options[label]

    def __repr__(self) -> str:
        return f"<View {self.message.DESCRIPTOR.full_name} at {self.path}>"


def known_message(type_name: str) -> Message | None:
    """A new message of that type, or None when no module that is imported defines it."""
    try:
        descriptor = Default().FindMessageTypeByName(type_name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor)()


def _is_on(value: Any) -> bool:
    """False for a BoolValue that says no."""
    return not (isinstance(value, BoolValue) and not value.value)
