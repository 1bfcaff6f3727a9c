"""The mesh that the soak runs: a control plane, one caller's sidecar, replicas with a sidecar each.

Everything is described by Kubernetes YAML in one folder, which the control plane watches; each part has a
loopback address of its own, so that all use the mesh's usual ports. Used by `soak.py` and
`soak_disturbances.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import yaml

from benchmarks.processes import BenchError, Process, get, wait_until
from benchmarks.soak_objects import (
    APPLICATION_PORT,
    NAMESPACE,
    State,
    account,
    endpoint_slice,
    route,
    service,
)
from mesh_api.names import ADMIN_PORT, OUTBOUND_PORT, STATUS_PORT, XDS_PORT
from pilotfish.workload_bootstrap import Workload, bootstrap

BODY_BYTES = 128
PILOTFISH = str(Path(sys.executable).parent / "pilotfish")


class Replica:
    """An application (nghttpd) and its sidecar; both can be started again after their end."""

    def __init__(self, mesh: SoakMesh, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._mesh = mesh
        self._application: Process | None = None
        self._sidecar: Process | None = None
        self.sidecar_starts = 0
        self.config = mesh.write_bootstrap(name, "files", address, access_log=False)

    @property
    def application(self) -> Process:
        assert self._application is not None
        return self._application

    @property
    def sidecar(self) -> Process:
        assert self._sidecar is not None
        return self._sidecar

    def start_application(self) -> None:
        command = [self._mesh.nghttpd, "--no-tls", "-a", self.address, "-d", str(self._mesh.htdocs)]
        command += ["-m", "1024", "-w", "20", "-W", "22", str(APPLICATION_PORT)]
        log = self._mesh.log(f"{self.name}-nghttpd")
        self._application = Process(f"{self.name} nghttpd", command, log)

    def start_sidecar(self) -> None:
        self.sidecar_starts += 1
        command = [PILOTFISH, "sidecar", "--config", str(self.config), "--drain-deadline", "10"]
        log = self._mesh.log(f"{self.name}-sidecar-{self.sidecar_starts}")
        self._sidecar = Process(f"{self.name} sidecar", command, log)

    def application_ready(self) -> bool:
        """Raises BenchError when it has ended."""
        self.application.check()
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex((self.address, APPLICATION_PORT)) == 0

    def ready(self) -> bool:
        """What a readiness probe would say. Raises BenchError when one of the two has ended."""
        self.sidecar.check()
        return self.application_ready() and sidecar_ready(self.address)

    def stop(self) -> None:
        for process in (self._sidecar, self._application):
            if process is not None:
                process.__exit__()

    def __repr__(self) -> str:
        return f"<Replica {self.name} {self.address} sidecar_starts={self.sidecar_starts}>"


class SoakMesh:
    """`start`, then use, then leave the context. `network`: the first three octets of its addresses."""

    def __init__(self, folder: Path, network: str, replicas: int, nghttpd: str) -> None:
        self.folder = folder
        self.nghttpd = nghttpd
        self.network = network
        self.htdocs = folder / "htdocs"
        self.config = folder / "mesh"
        for path in (self.htdocs, self.config, folder / "logs"):
            path.mkdir(parents=True, exist_ok=True)
        (self.htdocs / "128").write_bytes(b"x" * BODY_BYTES)
        self._ca = folder / "ca"
        self._stack = ExitStack()
        self.control_plane: Process
        self.outbound: Process
        self.caller = f"{network}.2"
        self.replicas = [
            Replica(self, f"files-{index + 1}", f"{network}.{11 + index}") for index in range(replicas)
        ]
        self._states = {replica.name: State.READY for replica in self.replicas}
        self.route_saves = 0

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # --- processes -------------------------------------------------------------------------------

    def __enter__(self) -> SoakMesh:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self, access_log: int) -> None:
        """Everything, until all is ready. `access_log`: the descriptor that gets the caller's lines."""
        self._write("service.yaml", [account("files"), account("caller"), service()], atomic=True)
        self.save_routes()
        self.write_endpoints()
        address = f"{self.network}.1"
        self.control_plane = self._stack.enter_context(
            Process(
                "control plane",
                [PILOTFISH, "control-plane", "--config-dir", str(self.config), "--ca-dir", str(self._ca),
                 "--listen", f"{address}:{XDS_PORT}", "--status", f"{address}:{STATUS_PORT}",
                 "--server-name", address, "--no-access-log"],
                self.log("control-plane"),
            )
        )  # fmt: skip
        wait_until(self.control_plane, lambda: get(f"http://{address}:{STATUS_PORT}/ready")[0] == 200)
        for name in ("files", "caller"):
            self._write_token(name)
        for replica in self.replicas:
            self._stack.callback(replica.stop)
            replica.start_application()
            replica.start_sidecar()
        for replica in self.replicas:
            wait_until(replica.sidecar, replica.ready)
        config = self.write_bootstrap("caller", "caller", self.caller, access_log=True)
        command = [PILOTFISH, "sidecar", "--config", str(config)]
        self.outbound = self._stack.enter_context(
            Process("caller sidecar", command, self.log("caller-sidecar"), access_log)
        )
        # Undone first: all drain at the same time.
        self._stack.callback(self._terminate)
        wait_until(self.outbound, partial(sidecar_ready, self.caller))

    def _terminate(self) -> None:
        for process in (self.outbound, *(replica.sidecar for replica in self.replicas)):
            process.send(signal.SIGTERM)

    def _write_token(self, account: str) -> None:
        command = [
            PILOTFISH,
            "token",
            "--service-account",
            f"{NAMESPACE}/{account}",
            "--ca-dir",
            str(self._ca),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchError(f"{' '.join(command)} failed: {made.stderr}")
        (self.folder / f"{account}.token").write_text(made.stdout)

    def write_bootstrap(self, name: str, account: str, address: str, access_log: bool) -> Path:
        path = self.folder / f"{name}.json"
        tree = bootstrap(
            Workload(
                name=name, namespace=NAMESPACE, service_account=account, address=address,
                token_file=str(self.folder / f"{account}.token"), root_file=str(self._ca / "root.pem"),
                control_plane=f"{self.network}.1:{XDS_PORT}", access_log=access_log,
            )
        )  # fmt: skip
        path.write_text(json.dumps(tree))
        return path

    # --- configuration ---------------------------------------------------------------------------

    def publish(self, replica: Replica, state: State) -> None:
        """Change what the EndpointSlice says of it, as the cluster does when it notices."""
        self._states[replica.name] = state
        self.write_endpoints()

    def write_endpoints(self) -> None:
        endpoints: list[dict[str, object]] = [
            {
                "addresses": [replica.address],
                "conditions": state.value,
                "targetRef": {"kind": "Pod", "name": replica.name},
            }
            for replica in self.replicas
            if (state := self._states[replica.name]) is not State.ABSENT
        ]
        self._write("endpoints.yaml", [endpoint_slice(endpoints)], atomic=True)

    def save_routes(self) -> None:
        """Save the routes with a change that callers do not see, as an editor does: in place."""
        self.route_saves += 1
        self._write("routes.yaml", [route(self.route_saves)], atomic=False)

    def _write(self, name: str, objects: list[dict[str, object]], atomic: bool) -> None:
        text = yaml.safe_dump_all(objects, sort_keys=False)
        path = self.config / name
        if not atomic:
            path.write_text(text)
            return
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, path)

    def __repr__(self) -> str:
        return f"<SoakMesh {self.network}.0/24 {self._states} route_saves={self.route_saves}>"


def outbound_address(mesh: SoakMesh) -> str:
    return f"{mesh.caller}:{OUTBOUND_PORT}"


def sidecar_ready(address: str) -> bool:
    return get(f"http://{address}:{ADMIN_PORT}/ready")[0] == 200


def kill(*processes: Process) -> None:
    """At once, and wait until they are gone."""
    for process in processes:
        process.send(signal.SIGKILL)
    for process in processes:
        process.__exit__()
