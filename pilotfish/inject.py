"""`pilotfish inject FILE`: adds the sidecar to the workloads of a manifest and prints the whole manifest.

Documents that need no change are printed as they were, byte for byte; of those that do, comments are lost.
Values mean to kubectl afterwards what they meant before: it reads some plain scalars as PyYAML does not.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from control_plane.injector.patch import InjectionError, inject
from control_plane.injector.sidecar_container import InjectionSettings

EXIT_CONFIG = 64
_POD_PATHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("v1", "Pod"): (),
    ("apps/v1", "Deployment"): ("spec", "template"),
    ("apps/v1", "StatefulSet"): ("spec", "template"),
    ("apps/v1", "DaemonSet"): ("spec", "template"),
    ("apps/v1", "ReplicaSet"): ("spec", "template"),
    ("batch/v1", "Job"): ("spec", "template"),
    ("batch/v1", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
"""Where a pod's metadata and spec are in each kind."""

Object = dict[str, Any]


class ManifestError(Exception):
    """The manifest cannot be injected; the text says which document and why."""


class _Plain(str):
    """Text that was not quoted and is not to be: kubectl may read a number (`1e3`) or a boolean (`y`)."""


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: dates, `12:30` and `=` are text."""

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return str(node.value) if node.style else _Plain(node.value)


_INT = re.compile(r"[-+]?(0b[01_]+|0x[\da-fA-F_]+|0[0-7_]*|[1-9][\d_]*)$")
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_PATTERNS = {"tag:yaml.org,2002:int": _INT, "tag:yaml.org,2002:float": _FLOAT}
_TEXT = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _PATTERNS.get(tag, pattern)) for tag, pattern in resolvers if tag not in _TEXT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


class _Dumper(yaml.SafeDumper):
    """Without aliases, and with long texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_DOUBTFUL = re.compile(r"[yYnN]|[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)([eE][-+]?\d+)?|[-+]?0o[0-7_]+")
"""What PyYAML would write without quotes, and kubectl read as a number or a boolean."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else "'" if _DOUBTFUL.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _plain(dumper: yaml.SafeDumper, value: _Plain) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Plain, _plain)


def run_inject(arguments: Sequence[str]) -> int:
    """The verb; returns its exit status."""
    given = _parser().parse_args(arguments)
    try:
        text = (sys.stdin.buffer.read() if given.file == "-" else Path(given.file).read_bytes()).decode()
        root = given.root.read_text() if given.root else ""
        settings = InjectionSettings(
            image=given.image,
            init_image=given.init_image,
            capture=not given.no_capture,
            control_plane=given.control_plane,
            root_pem=root,
            otlp=given.otlp,
            trace_sampling=given.trace_sampling,
            native=not given.ordinary_container,
        )
        output, notes = inject_manifest(text, settings)
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except ManifestError as error:
        print(f"error: {given.file}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    for note in notes:
        print(note, file=sys.stderr)
    sys.stdout.flush()
    sys.stdout.buffer.write(output.encode())
    return 0


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    tag = version("pilotfish")
    defaults = InjectionSettings(image=f"pilotfish-sidecar:{tag}", init_image=f"pilotfish-init:{tag}")
    parser = argparse.ArgumentParser(
        prog="pilotfish inject", description="Add the sidecar to the workloads of a Kubernetes manifest."
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="YAML, any number of documents; - is standard input")
    add("--image", default=defaults.image, help="of the sidecar (default %(default)s)")
    add("--init-image", default=defaults.init_image, help="of the init container (default %(default)s)")
    add("--no-capture", action="store_true", help="capture only pods that ask for it by annotation")
    add("--control-plane", default=defaults.control_plane, metavar="HOST:PORT", help="default %(default)s")
    add(
        "--root",
        type=Path,
        metavar="FILE",
        help="PEM of the mesh's root; default: the pods read it from the ConfigMap pilotfish-root "
        "of their namespace",
    )
    add("--otlp", default="", metavar="HOST:PORT", help="OTLP/HTTP collector of traces")
    add("--trace-sampling", default=defaults.trace_sampling, metavar="PERCENT")
    add(
        "--ordinary-container",
        action="store_true",
        help="for clusters before Kubernetes 1.29, which have no native sidecars",
    )
    return parser


def inject_manifest(text: str, settings: InjectionSettings) -> tuple[str, list[str]]:
    """The manifest with sidecars, and a line for each workload that says what became of it.
    Raises ManifestError."""
    notes: list[str] = []
    pieces: list[str] = []
    end = 0
    for number, (start, stop, document) in enumerate(_documents(text), 1):
        changed = _injected(document, settings, number, notes)
        if changed is not None:
            between = text[end:start]
            if between and not between.endswith("\n"):
                between += "\n"  # `--- {` on one line
            pieces += (between, _dump(changed, "\r\n" if "\r\n" in text[start:stop] else "\n"))
            end = stop
    pieces.append(text[end:])
    return "".join(pieces), notes


def _dump(document: Object, line_break: str) -> str:
    return yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, line_break=line_break
    )


def _documents(text: str) -> Iterator[tuple[int, int, Any]]:
    """Where each document's content begins and ends in the text, and what it says. Raises ManifestError."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise ManifestError(f"not YAML: {error}") from error
    number = 1
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            document = loader.construct_document(node)
            yield node.start_mark.index, _line_end(text, node.end_mark.index), document
            number += 1
    except yaml.YAMLError as error:
        raise ManifestError(f"document {number} is not YAML: {error}") from error
    finally:
        loader.dispose()


def _line_end(text: str, index: int) -> int:
    """Block collections end where the next token begins; flow collections within their line."""
    if index == 0 or text[index - 1] == "\n":
        return index
    newline = text.find("\n", index)
    return len(text) if newline < 0 else newline + 1


def _injected(document: Any, settings: InjectionSettings, number: int, notes: list[str]) -> Object | None:
    """The document with sidecars; None when it stays as it is."""
    if not isinstance(document, dict):
        return None
    if document.get("apiVersion") == "v1" and document.get("kind") == "List":
        items = document.get("items")
        if not isinstance(items, list):
            return None
        changed = [_injected(item, settings, number, notes) for item in items]
        if not any(item is not None for item in changed):
            return None
        merged = [old if new is None else new for old, new in zip(items, changed, strict=True)]
        return {**document, "items": merged}
    path = _POD_PATHS.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if path is None:
        return None
    name = _name(document, number)
    result = copy.deepcopy(document)
    pod: Any = result
    for step in path:
        pod = pod.get(step)
        if not isinstance(pod, dict):
            raise ManifestError(f"{name}: {'.'.join(path)} is missing")
    if not isinstance(pod.get("spec"), dict):
        raise ManifestError(f"{name}: {'.'.join((*path, 'spec'))} is missing")
    try:
        injection = inject(pod.get("metadata") or {}, pod["spec"], settings)
    except InjectionError as error:
        raise ManifestError(f"{name}: {error}") from error
    if injection.skipped:
        notes.append(f"{name}: left as it is: {injection.skipped}")
        return None
    notes.append(f"{name}: {injection.outcome}")
    notes += (f"{name}: {warning}" for warning in injection.warnings)
    # A template may lack metadata, which is written before spec.
    rest = {key: value for key, value in pod.items() if key not in ("metadata", "spec", "status")}
    status = {"status": pod["status"]} if "status" in pod else {}
    pod.clear()
    pod |= {**rest, "metadata": injection.metadata, "spec": injection.spec, **status}
    return result


def _name(document: Object, number: int) -> str:
    metadata = document.get("metadata") or {}
    name = metadata.get("name") or metadata.get("generateName") or "without a name"
    namespace = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{document['kind']} {namespace}{name} (document {number})"
