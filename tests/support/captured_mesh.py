"""A small cluster with the mesh in it: API server, control plane, and pods as the injector and the kubelet
make them, on a `ClusterNetwork`.

A pod's containers are processes in its namespace: what the injected pod says, with its arguments, variables,
users and capabilities. Everything else is as plain as users write it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.injector.patch import inject
from control_plane.injector.sidecar_container import InjectionSettings
from mesh_api.names import ADMIN_PORT, SIDECAR_CONTAINER
from tests.support.cluster_network import NODE, ClusterNetwork, Forward, Host
from tests.support.kube_api import KubeApi
from tests.support.kubernetes import account, mesh_annotations
from tests.support.processes import ROOT, Process, eventually
from tests.support.spans import SpanCollector

Object = dict[str, Any]
APPLICATION_USER = 1000
PILOTFISH = (sys.executable, "-m", "pilotfish")
DOMAIN = "shop.svc.cluster.local"
_CLEAN = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
"""A proxy of this machine is none of a pod's."""


class ApiThread:
    """The API server, in the node's namespace, with a loop of its own."""

    def __init__(self, network: ClusterNetwork, directory: Path) -> None:
        self.api = KubeApi(directory)
        self._network = network
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ApiThread:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def put(self, *objects: Object) -> None:
        self.do(lambda: self.api.put(*objects))

    def delete(self, kind: str, name: str) -> None:
        self.do(lambda: self.api.delete(kind, name))

    def do(self, call: Callable[[], None]) -> None:
        """In the server's thread."""

        async def called() -> None:
            call()

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    def _run(self) -> None:
        async def main() -> None:
            self._over = asyncio.Event()
            async with self.api:
                self._loop = asyncio.get_running_loop()
                self._up.set()
                await self._over.wait()

        with self._network.node.entered():
            asyncio.run(main())


@dataclass
class CapturedPod:
    """One pod. Without a sidecar `sidecar` stays None."""

    name: str
    account: str
    host: Host
    manifest: Object
    """As it was injected."""
    first: int = 4
    """IP version of its first address."""
    applications: list[Process] = field(default_factory=list)
    sidecar: Process | None = None

    @property
    def ip(self) -> str:
        return self.host.addresses[self.first]

    def container(self, name: str) -> Object:
        spec = self.manifest["spec"]
        return next(c for c in (*spec.get("initContainers", ()), *spec["containers"]) if c["name"] == name)

    def run(
        self, *command: str | Path, user: int = APPLICATION_USER, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """As its application would; both outputs are in `stdout`."""
        return subprocess.run(
            [*self.command(user), *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=_CLEAN | variables,
            cwd=ROOT,
        )

    def must(self, *command: str | Path) -> str:
        result = self.run(*command)
        assert result.returncode == 0, f"{' '.join(map(str, command))}: {result.stdout}"
        return result.stdout

    def client(self, kind: str, *arguments: str) -> str:
        return self.must(
            sys.executable, "-W", "ignore", "-m", "tests.support.captured_clients", kind, *arguments
        )

    def command(self, user: int) -> list[str]:
        return ["ip", "netns", "exec", self.host.namespace.name, *as_user(user)]

    def terminated(self) -> None:
        """Every process, the application first."""
        for process in (*self.applications, *([self.sidecar] if self.sidecar else ())):
            if process.child.poll() is None:
                process.terminate()
                process.wait()


def as_user(user: int, *capabilities: str) -> list[str]:
    kept = list(capabilities)
    if not all(path.stat().st_mode & 0o001 for path in Path(sys.executable).resolve().parents):
        kept.append("dac_read_search")  # the interpreter of the tests lies where only root can look
    listed = "".join(f",+{each}" for each in kept)
    ids = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    return [*ids, f"--inh-caps=-all{listed}", f"--ambient-caps=-all{listed}", f"--bounding-set=-all{listed}"]


class CapturedMesh:
    """Use as a context."""

    def __init__(self, directory: Path, *control_plane: str) -> None:
        self.directory = directory
        self.network = ClusterNetwork()
        self.pods: dict[str, CapturedPod] = {}
        self._arguments = control_plane
        self._stack = ExitStack()
        self._virtual = iter(range(1, 250))
        self.forwards: dict[str, list[Forward]] = {}
        """kube-proxy's, by Service."""

    def __enter__(self) -> CapturedMesh:
        try:
            self._stack.enter_context(self.network)
            self.kube = self._stack.enter_context(ApiThread(self.network, self.directory))
            with self.network.node.entered():
                self.spans = SpanCollector(NODE[4])
            self._stack.callback(self.spans.close)
            self.start_control_plane()
            objects = self.kube.api.objects
            root = ("configmaps", "pilotfish-system", "pilotfish-root")
            eventually(lambda: self.control_plane.check() or root in objects, "the mesh's root")
            pem = objects[root]["data"]["root.pem"]
            self.settings = InjectionSettings(
                "sidecar:1",
                "init:1",
                control_plane=f"{NODE[4]}:15010",
                root_pem=pem,
                otlp=f"{NODE[4]}:4318",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.pods.values():
            for process in (*pod.applications, *([pod.sidecar] if pod.sidecar else ())):
                process.stop()
        self._stack.close()

    def start_control_plane(self) -> None:
        command = [
            *self.network_prefix(),
            *PILOTFISH,
            "control-plane",
            "--kubeconfig",
            self.kube.api.kubeconfig(),
        ]
        command += ["--namespace", "pilotfish-system", "--server-name", NODE[4]]
        command += ["--listen", f"{NODE[4]}:15010", "--status", f"{NODE[4]}:15014"]
        command += ["--injector", f"{NODE[4]}:15017", "--sidecar-image", "x:1", "--init-image", "y:1"]
        command += ["--sidecar-control-plane", f"{NODE[4]}:15010"]
        command += ["--tracing-sampling", "100", "--tracing-cluster", "otlp", *self._arguments]
        self.control_plane = Process("control-plane", command, self.directory)
        self._stack.callback(self.control_plane.stop)

    def network_prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.network.node.name]

    # --- pods ---

    def add_pod(
        self,
        name: str,
        runs_as: str,
        *applications: str,
        sidecar: bool = True,
        container: Mapping[str, Any] | None = None,
        subdomain: str = "",
        first: int = 4,
        **annotations: str,
    ) -> CapturedPod:
        """Its processes are started, and perhaps not ready yet. `applications` as `captured_app` takes
        them; `container` is what the application's container says more."""
        host = self.network.add(name)
        addresses = [host.addresses[first], host.addresses[10 - first]]
        metadata: Object = {"annotations": mesh_annotations(annotations), "labels": {"app": runs_as}}
        spec: Object = {"containers": [{"name": "app", **(container or {})}], "serviceAccountName": runs_as}
        if subdomain:
            spec |= {"hostname": name, "subdomain": subdomain}
        if sidecar:
            injection = inject(metadata, spec, self.settings, {})
            assert not injection.skipped
            metadata, spec = injection.metadata, injection.spec
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**metadata, "name": name, "namespace": "shop"},
            "spec": {**spec, "nodeName": "node-1"},
            "status": {
                "phase": "Running",
                "podIP": addresses[0],
                "podIPs": [{"ip": address} for address in addresses],
            },
        }
        pod = self.pods[name] = CapturedPod(name, runs_as, host, manifest, first)
        self.kube.put(account(runs_as), manifest)
        if sidecar:
            self.run_init(pod)
            self.start_sidecar(pod)
        self.start_applications(pod, *applications)
        return pod

    def add_outside(self, name: str, *applications: str) -> CapturedPod:
        """A host of which the cluster knows nothing."""
        host = self.network.add(name)
        pod = self.pods[name] = CapturedPod(name, "", host, {"metadata": {}, "spec": {"containers": []}})
        self.start_applications(pod, *applications)
        return pod

    def run_init(self, pod: CapturedPod) -> None:
        """The init containers that end."""
        for container in pod.manifest["spec"]["initContainers"]:
            if container.get("restartPolicy") != "Always":
                rights = [name.lower() for name in container["securityContext"]["capabilities"]["add"]]
                prefix = ["ip", "netns", "exec", pod.host.namespace.name, *as_user(0, *rights)]
                done = subprocess.run(
                    [*prefix, *PILOTFISH, *container["args"]], capture_output=True, text=True, timeout=30
                )
                assert done.returncode == 0, done.stdout + done.stderr

    def start_sidecar(self, pod: CapturedPod) -> None:
        """As the kubelet starts the container, the first time or again."""
        container = pod.container(SIDECAR_CONTAINER)
        user = container["securityContext"]["runAsUser"]
        command = [*pod.command(user), *PILOTFISH, *container["args"]]
        environment = _CLEAN | self._variables(pod, container)
        pod.sidecar = Process(f"{pod.name}-sidecar", command, self.directory, env=environment)

    def hook(self, pod: CapturedPod, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the sidecar's container, as `preStop` or `kubectl exec` run it."""
        container = pod.container(SIDECAR_CONTAINER)
        user = container["securityContext"]["runAsUser"]
        return pod.run(*PILOTFISH, *command, user=user, **self._variables(pod, container))

    def _variables(self, pod: CapturedPod, container: Object) -> dict[str, str]:
        token = self.directory / f"{pod.name}.token"
        token.write_text(f"token of {pod.name}")
        token.chmod(0o644)
        user = {"username": f"system:serviceaccount:shop:{pod.account}"}
        self.kube.api.tokens[token.read_text()] = {
            "authenticated": True,
            "audiences": ["mesh-ca"],
            "user": user,
        }
        fields = {
            "metadata.name": pod.name,
            "metadata.namespace": "shop",
            "status.podIP": pod.ip,
            "spec.serviceAccountName": pod.account,
        }
        values = {
            item["name"]: fields[item["valueFrom"]["fieldRef"]["fieldPath"]]
            if "valueFrom" in item
            else item["value"].replace("$$", "$")
            for item in container["env"]
        }
        return {**values, "PILOTFISH_TOKEN_FILE": str(token)}

    def start_applications(self, pod: CapturedPod, *applications: str) -> None:
        if applications:
            command = (sys.executable, "-m", "tests.support.captured_app", pod.name, *applications)
            self.start(pod, pod.name, *command)

    def start(self, pod: CapturedPod, name: str, *command: str) -> Process:
        started = Process(name, [*pod.command(APPLICATION_USER), *command], self.directory)
        pod.applications.append(started)
        return started

    def ready(self, *pods: CapturedPod) -> None:
        """Waits for the applications and for the sidecars, as the kubelet does."""
        for pod in pods:
            for process in pod.applications:
                if process.name == pod.name:
                    eventually(
                        lambda process=process: process.check() or "serves" in process.out.read_text(),
                        f"{process}",
                    )
            if pod.sidecar is not None:
                eventually(lambda pod=pod: self._is_ready(pod), f"sidecar of {pod.name}")

    def _is_ready(self, pod: CapturedPod) -> bool:
        assert pod.sidecar is not None
        pod.sidecar.check()
        status, body = self.kubelet(pod, "/ready")
        assert status == 200, f"{body} {pod.sidecar.last_words()}"
        return True

    def kubelet(self, pod: CapturedPod, path: str, port: int = ADMIN_PORT) -> tuple[int, str]:
        """GET from the node."""
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        url = f"http://{host}:{port}{path}"
        command = ["curl", "-sg", "--noproxy", "*", "--max-time", "10", "-w", "\n%{http_code}", url]
        text, _, status = self.network.node.run(*command).stdout.rpartition("\n")
        return int(status), text

    # --- Services ---

    def add_service(
        self,
        name: str,
        *pods: CapturedPod,
        ports: Sequence[Mapping[str, Any]] = ({"name": "http", "port": 80, "targetPort": 8080},),
        headless: bool = False,
        node_port: int = 0,
    ) -> dict[int, str]:
        """Service, EndpointSlices of both families, kube-proxy's rules and DNS names. Again with other pods:
        changes it. Returns the virtual addresses; none if it is headless."""
        known = self.kube.api.objects.get(("services", "shop", name))
        if known is not None:
            virtual = dict(zip((4, 6), known["spec"]["clusterIPs"], strict=True))
        else:
            number = next(self._virtual)
            virtual = {4: f"10.96.0.{number}", 6: f"fd96::{number:x}"}
        addresses = ["None"] if headless else list(virtual.values())
        spec = {
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ports": [dict(port) for port in ports],
            "selector": {"app": name},
        }
        metadata = {"name": name, "namespace": "shop"}
        self.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        for version in (4, 6):
            self.kube.put(_slice(name, version, pods, ports))
        self._route(name, pods, ports, {} if headless else virtual, node_port)
        return {} if headless else virtual

    def _route(
        self,
        name: str,
        pods: Sequence[CapturedPod],
        ports: Sequence[Mapping[str, Any]],
        virtual: Mapping[int, str],
        node_port: int,
    ) -> None:
        staying = [pod for pod in pods if "deletionTimestamp" not in pod.manifest["metadata"]]
        own = self.forwards[name] = []
        for version in (4, 6):
            for port in ports:
                to = tuple((pod.host.addresses[version], port["targetPort"]) for pod in staying)
                if version in virtual:
                    own.append(Forward(virtual[version], port["port"], to))
                if node_port and port is ports[0]:
                    own.append(Forward(NODE[version], node_port, to, node_port=True))
        self.network.forward([each for forwards in self.forwards.values() for each in forwards])
        records, host = self.network.records, f"{name}.{DOMAIN}"
        records[host] = [*virtual.values()] or [a for p in staying for a in p.host.addresses.values()]
        for pod in pods:
            if pod.manifest["spec"].get("subdomain") == name:
                records[f"{pod.name}.{host}"] = [*pod.host.addresses.values()]

    def add_external_name(self, name: str, target: str) -> None:
        spec = {"type": "ExternalName", "externalName": target}
        metadata = {"name": name, "namespace": "shop"}
        self.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        self.network.records[f"{name}.{DOMAIN}"] = [target]


def _slice(
    service: str, version: int, pods: Sequence[CapturedPod], ports: Sequence[Mapping[str, Any]]
) -> Object:
    endpoints = []
    for pod in pods:
        leaving = "deletionTimestamp" in pod.manifest["metadata"]
        entry: Object = {
            "addresses": [pod.host.addresses[version]],
            "conditions": {"ready": not leaving, "serving": True, "terminating": leaving},
        }
        if pod.account:
            entry["targetRef"] = {"kind": "Pod", "name": pod.name, "namespace": "shop"}
            entry["nodeName"] = "node-1"
        if pod.manifest["spec"].get("subdomain") == service:
            entry["hostname"] = pod.name
        endpoints.append(entry)
    listed = [
        {"name": port["name"], "port": port["targetPort"], "protocol": "TCP"}
        | ({"appProtocol": port["appProtocol"]} if "appProtocol" in port else {})
        for port in ports
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-v{version}",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": f"IPv{version}",
        "ports": listed,
        "endpoints": endpoints,
    }
