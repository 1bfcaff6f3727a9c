"""`pilotfish proxy-config POD PAGE`: what one sidecar has been told and is doing, from its admin port.

The port is asked through the API server, or at an address. Reads only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from mesh_api.names import ADMIN_PORT, SIDECAR_CONTAINER
from pilotfish.operator.api import Api
from pilotfish.operator.errors import OperatorError
from pilotfish.operator.facts import some
from pilotfish.operator.kinds import INJECT, PODS
from pilotfish.operator.options import add_cluster_options, open_api, reporting
from pilotfish.operator.pages import PAGES
from pilotfish.operator.pods import container_state, why_not_running
from pilotfish.operator.replicas import fetch
from pilotfish.operator.table import table
from pilotfish.operator.transport import Object

_ANOTHER = "is it of another version? pilotfish status shows versions"


def run_proxy_config(arguments: Sequence[str]) -> int:
    """The verb. 0 when the sidecar has answered, else 1; 2: the command line is wrong."""
    pages = "|".join(PAGES)
    parser = argparse.ArgumentParser(
        prog="pilotfish proxy-config",
        description="Show what one sidecar has been told and is doing.",
        usage=f"%(prog)s [options] POD[.NAMESPACE] {pages}\n"
        f"       %(prog)s [options] --admin HOST:PORT {pages}",
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="POD PAGE", help=f"PAGE: {', '.join(PAGES)}")
    add_cluster_options(parser, "of the pod (default: that of the context)")
    add("-o", "--output", choices=("text", "json"), default="text")
    add("--admin", metavar="HOST:PORT", help="admin port of a sidecar, without a cluster")
    given = parser.parse_args(arguments)
    expected = 1 if given.admin else 2
    if len(given.words) != expected or given.words[-1] not in PAGES:
        parser.error(f"expected {'' if given.admin else 'POD[.NAMESPACE] and '}one of {', '.join(PAGES)}")
    return reporting(lambda: _proxy_config(given))


def _proxy_config(given: argparse.Namespace) -> int:
    page = PAGES[given.words[-1]]
    if given.admin:
        found = fetch(given.admin, page.path, "sidecar")
    else:
        with open_api(given) as api:
            pod = find_pod(given.words[0], given.namespace, api.context.namespace)
            found = read_page(api, *pod, page.path)
    try:
        shown = json.dumps(page.part(found), indent=1) if given.output == "json" else ""
        print(shown or table(page.head, page.rows(found)))
    except (KeyError, TypeError, AttributeError) as error:
        raise OperatorError(
            f"the sidecar's {page.path} is not as expected: {type(error).__name__}: {error}",
            f"{_ANOTHER}; --output json shows what it sent",
        ) from error
    return 0


def find_pod(word: str, namespace: str, default: str) -> tuple[str, str]:
    """Namespace and name of `POD[.NAMESPACE]`; with `--namespace` the whole word is the name."""
    name, dot, after = word.rpartition(".")
    if namespace or not dot:
        return namespace or default, word
    return after, name


def read_page(api: Api, namespace: str, name: str, path: str) -> Any:
    """The JSON of one page of a pod's sidecar. Raises OperatorError."""
    pod = api.get(PODS, namespace, name)
    if pod is None:
        raise OperatorError(
            f"there is no pod {name} in namespace {namespace}", _nearest(api, namespace, name)
        )
    reason = why_not_askable(pod)
    if reason:
        raise OperatorError(*reason)
    answer = api.page(namespace, name, ADMIN_PORT, path)
    if answer.status != 200:
        text = f"the sidecar of {namespace}/{name} answered {path} with {answer.status}: {answer.text()}"
        raise OperatorError(text, _ANOTHER)
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise OperatorError(f"what {namespace}/{name} sends for {path} is no JSON", _ANOTHER) from error


def why_not_askable(pod: Object) -> tuple[str, str] | None:
    """What is wrong with a pod whose sidecar cannot answer, and what to do; None: it should."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    if container_state(pod, SIDECAR_CONTAINER) is None:
        return (
            f"pod {namespace}/{name} has no sidecar",
            f"kubectl label namespace {namespace} {INJECT}=enabled if it is not labelled; "
            "then kubectl rollout restart what made the pod",
        )
    reason = why_not_running(pod)
    if not reason:
        return None
    return (
        f"the sidecar of pod {namespace}/{name} does not run ({reason})",
        f"kubectl -n {namespace} describe pod {name}; "
        f"kubectl -n {namespace} logs {name} -c {SIDECAR_CONTAINER}",
    )


def _nearest(api: Api, namespace: str, name: str) -> str:
    """Pods of like names, also those that the name is the beginning of."""
    known = [str(pod["metadata"]["name"]) for pod in api.items(PODS, namespace)]
    near = [pod for pod in known if pod.startswith(name)] or get_close_matches(name, known, 3, 0.5)
    if near:
        return f"did you mean {', '.join(sorted(near)[:5])}?"
    if known:
        return f"namespace {namespace} has {some(sorted(known))}"
    return f"namespace {namespace} has no pods; another one: POD.NAMESPACE, or -n NAMESPACE"
