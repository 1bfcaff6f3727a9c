"""A Kubernetes API server for tests: HTTPS, bearer tokens, lists in pages, watches, conflicts, and its moods.

It serves any object that tests `put` into it. It can drop watches, forget history (410), throttle (429),
deny kinds (404), answer slowly, and go away and come back on its port.
"""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.support.certs import TestCa, make_ca
from tests.support.kubernetes import mesh_annotations

Object = dict[str, Any]

PLURALS = {
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Pod": "pods",
    "Node": "nodes",
    "ServiceAccount": "serviceaccounts",
    "Namespace": "namespaces",
    "Secret": "secrets",
    "Lease": "leases",
    "HTTPRoute": "httproutes",
    "GRPCRoute": "grpcroutes",
    "TCPRoute": "tcproutes",
    "ReferenceGrant": "referencegrants",
    "TrafficPolicy": "trafficpolicies",
    "ConfigMap": "configmaps",
    "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
    "Deployment": "deployments",
    "CustomResourceDefinition": "customresourcedefinitions",
    "FelixConfiguration": "felixconfigurations",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
}
TOKEN = "control-plane-token"


@dataclass
class Mood:
    """What the next requests that match are answered with instead."""

    status: int
    matches: Callable[[web.Request], bool]
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class KubeApi:
    """Use as `async with KubeApi(tmp_path) as api`. Objects may be put before and after the start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects: dict[tuple[str, str, str], Object] = {}
        """By plural, namespace and name."""
        self.requests: list[web.Request] = []
        self.callers: set[tuple[str, int]] = set()
        """Addresses that requests came from: one for each connection."""
        self.absent: set[str] = set()
        """`GROUP/VERSION/plural` or plural of kinds that the server does not have."""
        self.tokens: dict[str, Object] = {}
        """TokenReview: token to the status that it gets; others are not authenticated."""
        self.documents: dict[str, Object] = {"/version": {"gitVersion": "v1.33.1"}}
        """By path: what is no object of the cluster, such as `/version`."""
        self.denied: set[tuple[str, str]] = set()
        """SelfSubjectAccessReview: verb and resource (`pods/proxy`) that the user lacks the right for."""
        self.proxies: dict[tuple[str, str], tuple[str, int]] = {}
        """Namespace and `POD:PORT` to where the pod's port really is; others cannot be reached."""
        self.admit: Callable[[Object], Object | web.Response] = lambda item: item
        """What becomes of an object that is created as a dry run."""
        self.date: Callable[[], str] | None = None
        """What documents are dated instead of with the time."""
        self.delay = 0.0
        self.silent: set[str] = set()
        """Ends of paths that are answered only when the server goes."""
        self._gone = asyncio.Event()
        self._open: Counter[int] = Counter()
        """Watches, by the generation that `drop_watches` ends."""
        self.port = 0
        self.max_page = 500
        self.moods: list[Mood] = []
        self._version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, str, Object]] = []
        self._news = asyncio.Condition()
        self._generation = 0
        self._ca: TestCa = make_ca("test API server CA")
        self._runner: web.AppRunner | None = None

    # --- what tests do to it ---

    def put(self, *objects: Object) -> None:
        """Creates or replaces."""
        for given in objects:
            item = copy.deepcopy(given)
            metadata = item["metadata"]
            key = (PLURALS[item["kind"]], metadata.get("namespace", ""), metadata["name"])
            before = self.objects.get(key)
            metadata.setdefault("uid", f"uid-{key[2]}")
            metadata["generation"] = _generation(before, item)
            if before is not None and "status" not in item and "status" in before:
                item["status"] = before["status"]
            self._store(key, item, "MODIFIED" if before else "ADDED")

    def delete(self, kind: str, name: str, namespace: str = "shop") -> None:
        key = (PLURALS[kind], namespace, name)
        self._store(key, self.objects[key], "DELETED")

    def get(self, kind: str, name: str, namespace: str = "shop") -> Object:
        return self.objects[PLURALS[kind], namespace, name]

    def compact(self) -> None:
        """Forgets all history and all lists in progress."""
        self._oldest = self._version
        self._history.clear()

    async def drop_watches(self) -> None:
        self._generation += 1
        await self._notify()
        while self._open[self._generation - 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    @property
    def watches(self) -> int:
        """Open ones."""
        return self._open.total()

    def answer(
        self, status: int, *, path: str = "", watch: bool | None = None, times: int = 1, **headers: str
    ) -> None:
        """The next `times` requests whose path ends so get this status instead."""

        def matches(request: web.Request) -> bool:
            return request.path.endswith(path) and watch in (None, "watch" in request.query)

        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.moods.append(Mood(status, matches, times, named))

    def seen(self, method: str, path: str) -> list[web.Request]:
        return [r for r in self.requests if r.method == method and r.path.endswith(path)]

    def kubeconfig(self) -> Path:
        """A file that leads here, with the right token."""
        path = self.directory / "kubeconfig"
        (self.directory / "api-ca.crt").write_bytes(self._ca.ca_pem)
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": "api-ca.crt"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "mesh"}}
            ],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # --- life ---

    async def __aenter__(self) -> KubeApi:
        certificate, key = self._ca.issue(addresses=["127.0.0.1"])
        pair = self.directory / "api.pem"
        pair.write_bytes(certificate + key)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(pair)
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        """Listens, on the same port as before."""
        self._gone.clear()
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        self.port = int(self._runner.addresses[0][1])

    async def down(self) -> None:
        """Cuts every connection and listens no more."""
        self._gone.set()
        await self.drop_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- requests ---

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.transport is not None:
            self.callers.add(request.transport.get_extra_info("peername"))
        if self.delay:
            await request.read()  # what has come takes effect, whether or not the client waits for it
            await asyncio.sleep(self.delay)
        if request.path.endswith(tuple(self.silent)):
            await self._gone.wait()
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized", "no valid token")
        for mood in self.moods:
            if mood.times and mood.matches(request):
                mood.times -= 1
                return _status(mood.status, _reason(mood.status), "as the test wants it", mood.headers)
        if request.path == "/apis/authentication.k8s.io/v1/tokenreviews":
            return await self._token_review(request)
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return self._access_review(await request.json())
        if request.path in self.documents:
            headers = {"Date": self.date()} if self.date else None
            return web.json_response(self.documents[request.path], headers=headers)
        if request.path.startswith("/apis/") and request.path.count("/") < 4:
            return web.Response(status=404, text="404 page not found\n")
        version, plural, namespace, name, sub = _split(request.path)
        if sub == "proxy":
            return await self._proxy(namespace, name, request.path.partition("/proxy")[2])
        if plural not in PLURALS.values() or {plural, f"{version}/{plural}"} & self.absent:
            return web.Response(status=404, text="404 page not found\n")
        if name:
            return await self._one(request, (plural, namespace, name), sub)
        if request.query.get("dryRun") == "All":
            return self._dry_run(namespace, await request.json())
        if request.method == "POST":
            return self._create(plural, namespace, await request.json())
        if "watch" in request.query:
            return await self._watch(request, plural)
        return self._list(request, plural)

    def _dry_run(self, namespace: str, item: Object) -> web.Response:
        if namespace and ("namespaces", "", namespace) not in self.objects:
            return _status(404, "NotFound", f'namespaces "{namespace}" not found')
        item["metadata"] |= {"namespace": namespace} if namespace else {}
        admitted = self.admit(item)
        return admitted if isinstance(admitted, web.Response) else web.json_response(admitted, status=201)

    def _list(self, request: web.Request, plural: str) -> web.Response:
        version, start = self._version, 0
        if token := request.query.get("continue"):
            version, start = map(int, token.split(":"))
            if version < self._oldest:
                return _status(410, "Expired", "The provided continue parameter is too old")
        limit = min(int(request.query.get("limit", "500")), self.max_page)
        namespace, selector = _split(request.path)[2], request.query.get("labelSelector", "")
        items = [
            item
            for key, item in sorted(self.objects.items())
            if key[0] == plural and namespace in ("", key[1]) and _selected(item, selector)
        ]
        page = [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items]
        metadata: Object = {"resourceVersion": str(version)}
        if start + limit < len(page):
            metadata["continue"] = f"{version}:{start + limit}"
        # Custom resources come in the order of their keys: items before metadata.
        body = {"items": page[start : start + limit], "kind": "List", "metadata": metadata}
        return web.json_response(body)

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < self._oldest:
            return _status(410, "Expired", "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        generation, deadline = self._generation, float(request.query["timeoutSeconds"])
        self._open[generation] += 1
        try:
            async with asyncio.timeout(deadline):
                await self._stream(response, plural, version, generation)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._open[generation] -= 1
        if generation != self._generation and request.transport is not None:
            request.transport.abort()
        return response

    async def _stream(self, response: web.StreamResponse, plural: str, version: int, generation: int) -> None:
        while generation == self._generation:
            if version < self._oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                await _send(response, "ERROR", gone)
                return
            for number, kind, of, item in list(self._history):
                if number > version and (of == plural or kind == "BOOKMARK"):
                    await _send(response, kind, item)
            version = self._version
            async with self._news:
                if version == self._version and generation == self._generation:
                    await self._news.wait()

    async def bookmark(self) -> None:
        """Tells every watch how far the world is."""
        self._version += 1
        metadata = {"resourceVersion": str(self._version)}
        self._history.append((self._version, "BOOKMARK", "", {"metadata": metadata}))
        await self._notify()

    def _create(self, plural: str, namespace: str, item: Object) -> web.Response:
        key = (plural, namespace, item["metadata"]["name"])
        if key in self.objects:
            return _status(409, "AlreadyExists", f"{key[2]} already exists")
        item["metadata"]["namespace"] = namespace
        self._store(key, item, "ADDED")
        return web.json_response(self.objects[key], status=201)

    async def _one(self, request: web.Request, key: tuple[str, str, str], sub: str) -> web.Response:
        known = self.objects.get(key)
        if known is None:
            return _status(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        if request.method == "GET":
            return web.json_response(known)
        body = await request.json()
        kind = request.headers["Content-Type"]
        if request.method == "PATCH" and kind in _PATCHES:
            self._store(key, _PATCHES[kind](known, body), "MODIFIED")
            return web.json_response(self.objects[key])
        asked = body["metadata"].get("resourceVersion")
        if asked is not None and asked != known["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        if request.method == "PUT":
            self._store(key, body, "MODIFIED")
        elif request.headers["Content-Type"] != "application/apply-patch+yaml" or sub != "status":
            return _status(415, "UnsupportedMediaType", "only server-side apply of a status is known here")
        elif "fieldManager" not in request.query:
            return _status(400, "BadRequest", "fieldManager is required for apply patch")
        else:
            self._store(key, {**known, "status": body["status"]}, "MODIFIED")
        return web.json_response(self.objects[key])

    async def _token_review(self, request: web.Request) -> web.Response:
        body = await request.json()
        status = self.tokens.get(body["spec"]["token"], {"authenticated": False, "error": "invalid token"})
        return web.json_response({**body, "status": status}, status=201)

    def _access_review(self, review: Object) -> web.Response:
        asked = review["spec"]["resourceAttributes"]
        resource = "/".join(asked[key] for key in ("resource", "subresource") if key in asked)
        allowed = (asked["verb"], resource) not in self.denied
        return web.json_response({**review, "status": {"allowed": allowed}}, status=201)

    async def _proxy(self, namespace: str, pod: str, path: str) -> web.Response:
        if ("pods", namespace, pod.partition(":")[0]) not in self.objects:
            return _status(404, "NotFound", f'pods "{pod}" not found')
        address = self.proxies.get((namespace, pod))
        if address is None:
            return _status(503, "ServiceUnavailable", "error trying to reach service: i/o timeout")
        url = f"http://{address[0]}:{address[1]}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            content_type = answer.headers["Content-Type"]
            return web.Response(
                status=answer.status, body=await answer.read(), headers={"Content-Type": content_type}
            )

    def _store(self, key: tuple[str, str, str], item: Object, kind: str) -> None:
        self._version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self._version)
        if kind == "DELETED":
            del self.objects[key]
        else:
            self.objects[key] = item
        self._history.append((self._version, kind, key[0], item))
        if self._runner is not None:
            asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()


def _merge_patch(known: Object, patch: Object) -> Object:
    """RFC 7386, without removals."""
    return known | {
        key: _merge_patch(known.get(key) or {}, value) if isinstance(value, dict) else value
        for key, value in patch.items()
    }


def _json_patch(known: Object, patch: list[Object]) -> Object:
    """RFC 6902: `test` and `add` of members."""
    result = copy.deepcopy(known)
    for operation in patch:
        *path, last = operation["path"].strip("/").split("/")
        at: Any = result
        for step in path:
            at = at[int(step)] if isinstance(at, list) else at[step]
        if operation["op"] == "test":
            assert at[last] == operation["value"]
        else:
            assert operation["op"] == "add"
            at[last] = operation["value"]
    return result


_PATCHES: dict[str, Callable[[Object, Any], Object]] = {
    "application/merge-patch+json": _merge_patch,
    "application/json-patch+json": _json_patch,
}


def _selected(item: Object, selector: str) -> bool:
    """Equality alone."""
    labels = item["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value for key, _, value in (p.partition("=") for p in selector.split(",") if p)
    )


async def _send(response: web.StreamResponse, kind: str, item: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")


def _generation(before: Object | None, item: Object) -> int:
    if before is None:
        return 1
    same = before.get("spec") == item.get("spec")
    return int(before["metadata"]["generation"]) + (0 if same else 1)


def _split(path: str) -> tuple[str, str, str, str, str]:
    """apiVersion, plural, namespace, name, subresource."""
    parts = path.strip("/").split("/")
    version, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    rest += ["", ""]
    return version, rest[0], namespace, rest[1], rest[2]


def _reason(status: int) -> str:
    return {403: "Forbidden", 410: "Expired", 429: "TooManyRequests", 503: "ServiceUnavailable"}.get(
        status, ""
    )


def _status(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
    return web.json_response(body, status=status, headers=headers)


# --- objects that only a cluster has ---


def pod(
    name: str,
    runs_as: str = "users",
    *,
    meshed: bool = True,
    node: str = "",
    leaving: bool = False,
    namespace: str = "shop",
    padding: int = 0,
    addresses: Sequence[str] = (),
    ports: Sequence[Object] = (),
    **annotations: str,
) -> Object:
    """`ports` are those of its one container; `annotations` those of the mesh's group, with `_` for `-`."""
    metadata: Object = {
        "name": name,
        "namespace": namespace,
        "labels": {"app": runs_as},
        "annotations": mesh_annotations(annotations),
    }
    if meshed:
        metadata["labels"]["mesh.pilotfish.dev/injected"] = "true"
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    if padding:
        metadata["managedFields"] = [{"manager": "kubelet", "fieldsV1": {"f:x": "x" * padding}}]
    container = {"name": "app", "ports": list(ports)}
    spec = {"serviceAccountName": runs_as, "nodeName": node, "containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]},
    }


def node(name: str, zone: str) -> Object:
    labels = {"topology.kubernetes.io/zone": zone}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def endpoint(address: str, pod_name: str = "", **more: Any) -> Object:
    """An entry of an EndpointSlice that is a Pod."""
    found: Object = {"addresses": [address], **more}
    if pod_name:
        found["targetRef"] = {"kind": "Pod", "name": pod_name, "namespace": "shop"}
    return found
