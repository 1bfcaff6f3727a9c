"""A whole mesh of real processes: a control plane that watches a folder, and workloads with sidecars."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from control_plane.app import issue_token
from control_plane.settings import parse_duration
from pilotfish.workload_bootstrap import TcpUpstream, Workload, bootstrap
from tests.support.apps import start_app
from tests.support.kubernetes import Object
from tests.support.processes import PILOTFISH, Process, eventually, loopback
from tests.support.sidecars import Sidecar

XDS = 15010
STATUS = 15014


class Mesh:
    """Folder `config` is what the control plane watches. Stop it with `stop`."""

    def __init__(self, directory: Path, *options: str, **workload: Any) -> None:
        """`options` are the control plane's; `workload` are fields of every Workload."""
        self.directory = directory
        self.config = directory / "config"
        self.config.mkdir()
        self.ca = directory / "ca"
        self.host = loopback()
        self.options = options
        self.workload = workload
        self.processes: list[Process] = []
        self.control_plane: Process

    # --- configuration

    def save(self, name: str, *objects: Object) -> None:
        """Into one file, at once, as an editor does."""
        temporary = self.directory / f"{name}.new"
        temporary.write_text(yaml.safe_dump_all(objects))
        os.replace(temporary, self.config / f"{name}.yaml")

    def status(self) -> Any:
        with urllib.request.urlopen(f"http://{self.host}:{STATUS}/status.json", timeout=5.0) as answer:
            return json.load(answer)

    # --- processes

    def start_control_plane(self) -> None:
        address = f"{self.host}:{XDS}"
        command = [PILOTFISH, "control-plane", "--config-dir", self.config, "--ca-dir", self.ca]
        command += ["--listen", address, "--status", f"{self.host}:{STATUS}", "--server-name", self.host]
        self.control_plane = Process("control-plane", [*command, *self.options], self.directory)
        self.processes.append(self.control_plane)

        def ready() -> bool:
            self.control_plane.check()
            with urllib.request.urlopen(f"http://{self.host}:{STATUS}/ready", timeout=5.0) as answer:
                return bool(answer.status == 200)

        eventually(ready, "the control plane to be ready")

    def sidecar(
        self, name: str, account: str, host: str, upstreams: Sequence[TcpUpstream] = (), *options: str
    ) -> Sidecar:
        """Starts one, without waiting for it. `account` is of namespace shop."""
        token = self.directory / f"{name}.token"
        token.write_text(issue_token(self.ca, "shop", account, parse_duration("1h")))
        made = Workload(
            name=name,
            namespace="shop",
            service_account=account,
            address=host,
            token_file=str(token),
            root_file=str(self.ca / "root.pem"),
            control_plane=f"{self.host}:{XDS}",
            upstreams=tuple(upstreams),
            **self.workload,
        )
        sidecar = Sidecar(name, bootstrap(made), self.directory, *options)
        self.processes.append(sidecar)
        return sidecar

    def app(self, name: str, host: str, port: int = 8080, kind: str = "http") -> Process:
        process = start_app(host, port, name, self.directory, kind)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def __repr__(self) -> str:
        return f"<Mesh {self.host} {self.processes!r}>"
