"""Protobuf's JSON form, from trees of dicts and lists, with errors that name the path in the file.

Called by `sidecar/bootstrap.py`. Works around two habits of protobuf's own parser, which does the actual
conversion: it stops at the first unknown field, and it fails at an `@type` that it does not know. An Any of
unknown type becomes a TypedStruct, so that the decoder can judge whether it matters there.
"""

from __future__ import annotations

import difflib
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from xds.type.v3 import typed_struct_pb2

from sidecar.config.decode.view import known_message

_TYPED_STRUCT = f"type.googleapis.com/{typed_struct_pb2.TypedStruct.DESCRIPTOR.full_name}"
_ANY = "google.protobuf.Any"


def to_message(tree: dict[str, Any], type_name: str) -> tuple[Message, list[str]]:
    """The message, or errors each starting with a path (the message is then incomplete)."""
    message = known_message(type_name)
    assert message is not None, type_name
    walk = _Walk()
    cleaned = walk.message(tree, message.DESCRIPTOR, "")
    if not walk.errors:
        try:
            json_format.ParseDict(cleaned, message)
        except json_format.ParseError as error:
            walk.errors.append(str(error))
    return message, walk.errors


class _Walk:
    """Copies a tree beside its descriptors, noting what does not fit. Scalars are converted one by one, so
    that each bad value is named."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def message(self, tree: Any, descriptor: Any, path: str) -> Any:
        if descriptor.full_name == _ANY:
            return self.any(tree, path)
        if descriptor.full_name.startswith("google.protobuf."):
            return tree  # Duration, Struct and the wrappers have forms of their own.
        if not isinstance(tree, dict):
            return self._wrong(path, f"must be a mapping, not {_kind(tree)}")
        by_json_name = {field.json_name: field for field in descriptor.fields}
        cleaned: dict[str, Any] = {}
        for key, value in tree.items():
            field = descriptor.fields_by_name.get(key) or by_json_name.get(key)
            where = f"{path}.{key}" if path else str(key)
            if field is None:
                self._unknown(where, str(key), descriptor)
            elif field.name in cleaned:
                self._wrong(where, f"given twice, as {field.name} and {field.json_name}")
            elif value is not None:
                where = f"{path}.{field.name}" if path else field.name
                cleaned[field.name] = self.field(value, field, where)
        return cleaned

    def field(self, value: Any, field: Any, path: str) -> Any:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if not isinstance(value, dict):
                return self._wrong(path, f"must be a mapping, not {_kind(value)}")
            entry = field.message_type.fields_by_name["value"]
            return {str(key): self.single(each, entry, f'{path}["{key}"]') for key, each in value.items()}
        if field.is_repeated:
            if not isinstance(value, list):
                return self._wrong(path, f"must be a list, not {_kind(value)}")
            return [self.single(each, field, f"{path}[{index}]") for index, each in enumerate(value)]
        return self.single(value, field, path)

    def single(self, value: Any, field: Any, path: str) -> Any:
        descriptor = field.message_type
        if descriptor is not None and not descriptor.full_name.startswith("google.protobuf."):
            return self.message(value, descriptor, path)
        if descriptor is not None and descriptor.full_name == _ANY:
            return self.any(value, path)
        self._try(value, field, path)
        return value

    def any(self, tree: Any, path: str) -> Any:
        """An Any: the tree of the type that `@type` names."""
        if not isinstance(tree, dict) or not isinstance(tree.get("@type"), str):
            return self._wrong(path, 'must be a mapping with "@type"')
        url = tree["@type"]
        inner = {key: value for key, value in tree.items() if key != "@type"}
        message = known_message(url.rpartition("/")[2])
        if message is None:
            return {"@type": _TYPED_STRUCT, "type_url": url, "value": inner}
        if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
            return tree
        return {"@type": url, **self.message(inner, message.DESCRIPTOR, path)}

    def _try(self, value: Any, field: Any, path: str) -> None:
        """Convert one value on its own to see whether it fits."""
        containing = known_message(field.containing_type.full_name)
        if containing is None:  # the synthetic type of a map's entries
            return
        try:
            json_format.ParseDict({field.name: [value] if field.is_repeated else value}, containing)
        except json_format.ParseError as error:
            self._wrong(path, _reason(str(error)))

    def _unknown(self, path: str, key: str, descriptor: Any) -> None:
        names = [field.name for field in descriptor.fields]
        close = difflib.get_close_matches(key, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self._wrong(path, f"{descriptor.full_name} has no such field{hint}")

    def _wrong(self, path: str, text: str) -> None:
        self.errors.append(f"{path}: {text}")


def _reason(text: str) -> str:
    """What protobuf says is wrong, without its own path."""
    text = text.rpartition(" field: ")[2]
    return text.split(" at ")[0].rstrip(".")


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), str(value)
    )
