"""Requests to the API server with the user's own rights: objects, lists, and pages of pods behind it.

Used by the operator's verbs, which run once and end. Reads only, but for reviews of rights and creations that
are asked for as a dry run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import quote

from pilotfish.operator.errors import OUT_OF_REACH_PAGE, RIGHTS_PAGE, WEBHOOK_PAGE, ApiError, TimedOut
from pilotfish.operator.kinds import ACCESS_REVIEWS, PODS, Kind, missing_right
from pilotfish.operator.kubeconfig import Context
from pilotfish.operator.transport import TIMEOUT, Answer, Object, Transport

T = TypeVar("T")
R = TypeVar("R")

_PAGE = 500
DISCOVERY = "is the ClusterRole system:discovery bound to all users, as Kubernetes does it?"
"""What gives the right to read what the API server says of itself."""
_AT_ONCE = 8
"""Requests under way at the same time: enough for a distant API server, few enough for a busy one."""
_WEBHOOKS = (
    "is there a webhook that does not answer? "
    "kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations"
)
_BETWEEN = "is a NetworkPolicy or a firewall between them?"


class Api:
    """One API server, as one user. To be used in a `with` block."""

    def __init__(self, context: Context, timeout: float = TIMEOUT) -> None:
        self.context = context
        self.server = context.access.server
        self._transport = Transport(context, timeout)
        # For all that is asked at once, now and later: each has a connection of its own.
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self.ask = self._transport.ask

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._transport.close()

    def __repr__(self) -> str:
        return f"<Api {self.server} context={self.context.name!r}>"

    def at_once(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` of all, some at the same time, in their order. What one raises, this raises. `work` must not
        come back here: it would wait for its own thread."""
        return list(self._threads.map(work, items))

    # --- objects ---

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """None: there is no such object. Raises ApiError."""
        answer = self.ask("GET", kind.path(namespace, name))
        return None if answer.status == 404 else self._checked(answer, "get", kind, namespace, of=name)

    def items(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Object]:
        """All of one kind; empty where the cluster does not know the kind. Raises ApiError."""
        found: list[Object] = []
        query = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            answer = self.ask("GET", kind.path(namespace), query)
            if answer.status == 404:
                return []
            page = self._checked(answer, "list", kind, namespace)
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = token

    def document(self, path: str) -> Object | None:
        """What is at a path that everybody may read, such as `/version`; None: nothing. Raises ApiError."""
        answer = self.ask("GET", path)
        return None if answer.status == 404 else self.read(answer, f"get {path}", DISCOVERY)

    def may(self, verb: str, kind: Kind, namespace: str = "", sub: str = "") -> bool:
        """Whether the user has a right. Raises ApiError."""
        what = {"verb": verb, "group": kind.group, "version": kind.version, "resource": kind.plural}
        what |= {"namespace": namespace, "subresource": sub}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in what.items() if value}},
        }
        answer = self.ask("POST", ACCESS_REVIEWS.path(), body=review)
        status = self._checked(answer, "create", ACCESS_REVIEWS, "").get("status") or {}
        return bool(status.get("allowed"))

    def dry_run(self, kind: Kind, namespace: str, item: Object) -> Answer:
        """What the API server says to the creation of an object, which it then forgets. Raises ApiError."""
        try:
            return self.ask("POST", kind.path(namespace), {"dryRun": "All"}, item)
        except TimedOut as error:
            # It waits for the webhooks of others up to twice as long as we for it.
            text = f"a dry run of {kind.resource()} took longer than {self._transport.timeout:g} s"
            raise ApiError(504, text, _WEBHOOKS, WEBHOOK_PAGE) from error

    # --- pages of pods ---

    def page(self, namespace: str, pod: str, port: int, path: str) -> Answer:
        """What a pod answers at `path`, whatever its status. Raises ApiError when it was not asked."""
        unreachable = f"the API server cannot reach {namespace}/{pod} at port {port}"
        try:
            answer = self.ask("GET", PODS.path(namespace, f"{quote(pod)}:{port}", f"proxy{path}"))
        except TimedOut as error:
            # The API server waits longer for a pod than we for the API server, which answers otherwise.
            silence = f"{unreachable}: silent for {self._transport.timeout:g} s"
            raise ApiError(504, silence, _BETWEEN, OUT_OF_REACH_PAGE) from error
        if answer.status in (401, 403, 404) and answer.status_object() is not None:
            self._checked(answer, "get", PODS, namespace, "proxy")
        unreached = answer.status_object() is not None or answer.text().startswith("error trying to reach")
        if answer.status >= 500 and unreached:
            raise ApiError(answer.status, f"{unreachable}: {_message(answer)}", _BETWEEN, OUT_OF_REACH_PAGE)
        return answer

    def _checked(
        self, answer: Answer, verb: str, kind: Kind, namespace: str, sub: str = "", of: str = ""
    ) -> Object:
        """The object of a successful answer. Raises ApiError."""
        where = f" in namespace {namespace}" if namespace else ""
        right = missing_right(verb, kind, namespace, sub, of)
        return self.read(answer, f"{verb} {kind.resource(sub)}{where}", right)

    def read(self, answer: Answer, what: str, right: str) -> Object:
        """The object of a successful answer. `right`: what gives the right to `what`. Raises ApiError."""
        if answer.status == 401:
            raise ApiError(401, f"the API server {self.server} does not know you", "log in again")
        if answer.status == 403:
            raise ApiError(403, f"you may not {what}: {_message(answer)}", right, RIGHTS_PAGE)
        if answer.status >= 300:
            text = f"{what} was answered with {answer.status}: {_message(answer)}"
            raise ApiError(answer.status, text, "kubectl get --raw '/readyz?verbose' says what it lacks")
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            text = f"the answer to {what} is no JSON object"
            raise ApiError(answer.status, text, f"is {self.server} an API server?")
        return found


def _message(answer: Answer) -> str:
    status = answer.status_object()
    text = str(status.get("message") or "") if status else answer.text()
    return text.partition("\n")[0][:500]
