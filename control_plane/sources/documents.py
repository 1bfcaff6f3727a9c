"""The text of one YAML or JSON file to Kubernetes objects, each with the place of every field in the file.

Called by `load`. Scalars mean what they mean to Kubernetes: a time stays a text. A key that is there
twice is an error, because YAML readers silently drop one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from control_plane.sources.fields import Path


class _Loader(yaml.CSafeLoader):
    """Without YAML 1.1's timestamps, which Kubernetes' reader does not have."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


class DocumentError(Exception):
    """A file that cannot be read as YAML or JSON. `line` is 1-based, 0 when unknown."""

    def __init__(self, message: str, line: int, document: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.document = document


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file. `number` is its YAML document's place, from 1; items of a List share it."""

    file: str
    number: int
    value: object
    node: yaml.Node | None

    def line(self, path: Path) -> int:
        """The line of the field, or of the innermost part of its path that is there; 0: unknown."""
        node = self.node
        line = 0 if node is None else node.start_mark.line + 1
        for part in path:
            if isinstance(node, yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


def read_documents(file: str, text: str) -> list[Document]:
    """Every object of the file, the items of a `List` among them. Raises DocumentError."""
    read = _read_json if file.endswith(".json") else _read_yaml
    return [item for document in read(file, text) for item in _items(document)]


def _read_json(file: str, text: str) -> Iterator[Document]:
    try:
        yield Document(file, 1, json.loads(text), None)
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON: {error.msg}", error.lineno, 0) from None


def _read_yaml(file: str, text: str) -> Iterator[Document]:
    number = 0
    try:
        loader = _Loader(text)
        try:
            while loader.check_node():
                number += 1
                node = loader.get_node()
                if node is None:
                    break
                _refuse_duplicate_keys(node, number)
                value = loader.construct_document(node)
                if value is not None:
                    yield Document(file, number, value, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(f"not YAML: {what}", mark.line + 1 if mark else 0, max(number, 1)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"not YAML: {' '.join(str(error).split())}", 0, max(number, 1)) from None


def _refuse_duplicate_keys(root: yaml.Node, number: int) -> None:
    pending, seen = [root], {id(root)}
    while pending:
        node = pending.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in names:
                        message = f"the key {key.value!r} is there twice in one mapping; remove one"
                        raise DocumentError(message, key.start_mark.line + 1, number)
                    names.add(key.value)
                children.append(value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        for child in children:
            if id(child) not in seen:  # an alias is one node in several places
                seen.add(id(child))
                pending.append(child)


def _items(document: Document) -> Iterator[Document]:
    value = document.value
    items = value.get("items") if isinstance(value, dict) else None
    if not isinstance(items, list) or not str(value.get("kind", "")).endswith("List"):  # type: ignore[attr-defined]
        yield document
        return
    nodes: list[yaml.Node] = []
    if isinstance(document.node, yaml.MappingNode):
        nodes = next((node.value for key, node in document.node.value if key.value == "items"), [])
    for index, item in enumerate(items):
        yield Document(document.file, document.number, item, nodes[index] if index < len(nodes) else None)
