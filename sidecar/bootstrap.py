"""Reads the sidecar's configuration file: an Envoy v3 Bootstrap in YAML or JSON.

Called by the command line before anything else is started. Opens no socket and starts nothing; the files
that the configuration names (certificates, tokens) are read later by whoever uses them.
"""

from __future__ import annotations

from typing import Any

import yaml
from google.protobuf import json_format

from sidecar.config.decode import ConfigError, decode_bootstrap
from sidecar.config.decode.json_form import to_message
from sidecar.config.resources import Bootstrap

__all__ = ["ConfigError", "load_bootstrap", "parse_bootstrap"]

BOOTSTRAP_TYPE = "envoy.config.bootstrap.v3.Bootstrap"


class _Loader(yaml.SafeLoader):
    """YAML without dates, so that what looks like one stays text; keys appear once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                text = f"{key.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_bootstrap(path: str) -> Bootstrap:
    """The configuration in the file at `path`. Raises `ConfigError` with everything that is wrong in it."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from None
    return parse_bootstrap(text, path)


def parse_bootstrap(text: str, name: str = "bootstrap") -> Bootstrap:
    """The configuration in `text`; `name` says in errors where it came from."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError([f"{where}: not valid YAML: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{name}: not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{name}: must be a mapping (an Envoy v3 Bootstrap), not {type(tree).__name__}"])
    try:
        message, errors = to_message(tree, BOOTSTRAP_TYPE)
    except json_format.ParseError as error:
        raise ConfigError([f"{name}: {error}"]) from None
    if errors:
        raise ConfigError(errors)
    return decode_bootstrap(message)
