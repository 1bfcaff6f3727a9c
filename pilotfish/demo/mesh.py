"""Starts and stops the demo's mesh: control plane, applications, sidecars, all in one temporary folder.

Used by main.py. It does what the README tells a person to do by hand: a join token for each account, a
bootstrap for each workload, a process for each part.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
import yaml

from pilotfish.demo.processes import DemoError, Processes, clean_environment
from pilotfish.demo.topology import (
    CONTROL_PLANE,
    NAMESPACE,
    REPLICAS,
    SHOP,
    SHOPPER,
    STATUS,
    WORKLOADS,
    Replica,
)
from pilotfish.demo.traffic import Shopper
from pilotfish.workload_bootstrap import OTLP, Workload, bootstrap

START_SECONDS = 30.0
"""How long a part may take until it is ready; a busy machine is slow at starting Python."""
_POLL = 0.05
_PILOTFISH = (sys.executable, "-m", "pilotfish")


class Mesh:
    """`folder` is empty and belongs to the mesh; `otlp` is the collector's HOST:PORT."""

    def __init__(self, folder: Path, otlp: str) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.processes = Processes(self.logs)
        self._otlp = otlp
        self._http = requests.Session()
        self._http.trust_env = False

    def start_control_plane(self) -> None:
        """Copies the YAML, starts the control plane and waits until it is ready."""
        self._copy_config()
        options = ["--config-dir", self.config, "--ca-dir", self.folder / "ca"]
        options += ["--listen", CONTROL_PLANE, "--status", STATUS]
        options += ["--tracing-sampling", "100", "--tracing-cluster", OTLP]
        self.processes.start(
            "control-plane", [*_PILOTFISH, "control-plane", *map(str, options)], clean_environment()
        )

    def _copy_config(self) -> None:
        """The laptop's files go beside the others, where Kubernetes would make their like itself."""
        self.config.mkdir()
        for file in SHOP.glob("*.yaml"):
            shutil.copy(file, self.config)
        for file in (SHOP / "laptop").glob("*.yaml"):
            shutil.copy(file, self.config / f"laptop-{file.name}")

    def start_applications(self) -> None:
        for replica in REPLICAS:
            self.start_application(replica)

    def start_application(self, replica: Replica) -> None:
        self.processes.start(f"{replica.name}-app", self._script(replica), self._environment(replica))

    def start_shopper(self) -> Shopper:
        return Shopper(
            self.processes.start(
                f"{SHOPPER.name}-app",
                self._script(SHOPPER),
                self._environment(SHOPPER),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )

    def _script(self, replica: Replica) -> list[str]:
        return [sys.executable, str(SHOP / "apps" / replica.script)]

    def _environment(self, replica: Replica) -> dict[str, str]:
        """Where to listen, and the standard variables of a proxy: all that an application is told."""
        own = {
            "REPLICA": replica.name,
            "ADDRESS": replica.address,
            "PORT": str(replica.port),
            "HTTP_PROXY": replica.proxy,
            "http_proxy": replica.proxy,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return clean_environment() | own

    def start_sidecars(self) -> None:
        for workload in WORKLOADS:
            self.start_sidecar(workload)

    def start_sidecar(self, replica: Replica) -> None:
        """Writes its token and bootstrap, then starts it. The control plane has to be ready."""
        from control_plane.app import issue_token

        token = self.folder / f"{replica.name}.token"
        token.touch(mode=0o600)
        token.write_text(issue_token(self.folder / "ca", NAMESPACE, replica.service, timedelta(hours=1)))
        workload = Workload(
            name=replica.name,
            namespace=NAMESPACE,
            service_account=replica.service,
            address=replica.address,
            token_file=str(token),
            root_file=str(self.folder / "ca" / "root.pem"),
            control_plane=CONTROL_PLANE,
            otlp=self._otlp,
        )
        file = self.folder / f"{replica.name}.yaml"
        file.write_text(yaml.safe_dump(bootstrap(workload), sort_keys=False))
        # Only the name of the replica is added: it tells the spans of equal services apart.
        environment = clean_environment() | {
            "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={replica.name}"
        }
        self.processes.start(
            f"{replica.name}-sidecar", [*_PILOTFISH, "sidecar", "--config", str(file)], environment
        )

    def wait_control_plane(self) -> None:
        self._wait("control-plane", f"http://{STATUS}/ready", "")

    def wait_workload(self, replica: Replica) -> None:
        """Until the sidecar takes traffic and the application listens."""
        self._wait(f"{replica.name}-sidecar", f"http://{replica.admin}/ready", "")
        if replica.port:
            self._wait_listening(replica)

    def _wait(self, name: str, url: str, reason: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.processes.check()
            try:
                response = self._http.get(url, timeout=2)
                if response.ok:
                    return
                reason = response.text.strip()
            except requests.RequestException:
                reason = "it does not answer yet"
            time.sleep(_POLL)
        raise DemoError(
            f"{name} is not ready after {START_SECONDS:.0f} s: {reason}", self.processes.log_of(name)
        )

    def _wait_listening(self, replica: Replica) -> None:
        deadline = time.monotonic() + START_SECONDS
        name = f"{replica.name}-app"
        while time.monotonic() < deadline:
            self.processes.check()
            try:
                socket.create_connection((replica.address, replica.port), 1).close()
                return
            except OSError:
                time.sleep(_POLL)
        raise DemoError(
            f"{name} does not listen on {replica.address}:{replica.port}", self.processes.log_of(name)
        )

    def status(self) -> dict[str, Any]:
        """The control plane's status.json."""
        return self._json(f"http://{STATUS}/status.json")

    def spiffe_id(self, replica: Replica) -> str:
        """As the sidecar's own certificate says; empty when it has none."""
        certs = self._json(f"http://{replica.admin}/certs")
        return next((str(cert["spiffe_id"]) for cert in certs.values()), "")

    def retries(self, replica: Replica) -> int:
        """That its sidecar made for requests of its application."""
        routes = self._json(f"http://{replica.admin}/stats")["routes"]
        return sum(route["retries"] for route in routes if route["direction"] == "outbound")

    def _json(self, url: str) -> dict[str, Any]:
        try:
            response = self._http.get(url, timeout=5)
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
        except requests.RequestException as error:
            raise DemoError(f"{url} did not answer: {error}") from error
        return answer

    def save_config(self, name: str, documents: list[Any]) -> None:
        """Saves a file as editors do: written beside it, then moved into its place."""
        beside = self.config / f".{name}.new"
        beside.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        os.replace(beside, self.config / name)

    def load_config(self, name: str) -> list[Any]:
        return list(yaml.safe_load_all((self.config / name).read_text()))

    def sidecar_log(self, replica: Replica) -> str:
        return (self.logs / f"{replica.name}-sidecar.log").read_text(errors="backslashreplace")

    def __repr__(self) -> str:
        return f"<Mesh {self.folder} {self.processes!r}>"
