"""`pilotfish inject`: the workloads of a manifest change, and nothing else does."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.injector.sidecar_container import InjectionSettings
from pilotfish.inject import ManifestError, inject_manifest, run_inject
from tests.support.manifests import ROOT, VERSIONS, check_schema, documents

SETTINGS = InjectionSettings(image="sidecar:1")
POD = {"containers": [{"name": "app", "image": "app:1"}]}


def templated(kind: str, api_version: str = "apps/v1") -> dict[str, Any]:
    spec: dict[str, Any] = {"template": {"metadata": {"labels": {"a": "b"}}, "spec": POD}}
    if api_version == "apps/v1":
        spec["selector"] = {"matchLabels": {"a": "b"}}
    if kind == "StatefulSet":
        spec["serviceName"] = "x"
    if kind in ("Job", "CronJob"):
        spec["template"]["spec"] = {**POD, "restartPolicy": "Never"}
    if kind == "CronJob":
        spec = {"schedule": "* * * * *", "jobTemplate": {"spec": spec}}
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}


WORKLOADS = [
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": POD},
    *(templated(kind) for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")),
    *(templated(kind, "batch/v1") for kind in ("Job", "CronJob")),
]


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "Pod":
        return document
    spec = document["spec"]
    return (spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec)["template"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["kind"])
def test_every_kind_of_workload_gets_a_sidecar_and_stays_valid(workload: Any, version: str) -> None:
    output, notes = inject_manifest(yaml.safe_dump(workload), SETTINGS)
    [injected] = documents(output)
    check_schema(injected, version)
    pod = pod_of(injected)
    assert pod["spec"]["initContainers"][0]["name"] == "pilotfish-sidecar"
    assert pod["metadata"]["labels"]["mesh.pilotfish.dev/injected"] == "true"
    assert notes == [f"{workload['kind']} x (document 1): sidecar added"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["kind"])
def test_what_was_injected_is_printed_byte_for_byte(workload: Any) -> None:
    once, _ = inject_manifest(yaml.safe_dump(workload), SETTINGS)
    twice, notes = inject_manifest(once, SETTINGS)
    assert twice == once
    assert notes[0].endswith("left as it is: it has a sidecar")


MANIFEST = """\
# shop
apiVersion: v1
kind: Service
metadata: {name: users}   # stays
spec:
  ports: [{port: 080, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: users, annotations: {built: 2026-01-02, mode: "0644"}}
spec:
  selector: {matchLabels: {app: users}}
  template:
    metadata: {labels: {app: users}}
    spec:
      containers:
        - name: app
          image: app:1
          args: ["---", "yes", "1e3"]
          env:
            - name: SCRIPT
              value: |
                ---
                apiVersion: v1
---
# the end
kind: ConfigMap
apiVersion: v1
metadata: {name: last}
data:
  text: "on"
"""


def test_other_documents_stay_as_they_are_with_their_comments() -> None:
    output, _ = inject_manifest(MANIFEST, SETTINGS)
    before, after = (
        MANIFEST.split("---\napiVersion: apps/v1")[0],
        MANIFEST[MANIFEST.index("---\n# the end") :],
    )
    assert output.startswith(before)
    assert output.endswith(after)
    assert len(documents(output)) == 3


def test_values_of_an_injected_document_keep_their_types() -> None:
    class Text(yaml.SafeLoader):
        """Timestamps as text, as Kubernetes reads them."""

    Text.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
    output, _ = inject_manifest(MANIFEST, SETTINGS)
    deployment = list(yaml.load_all(output, Text))[1]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert deployment["metadata"]["annotations"] == {"built": "2026-01-02", "mode": "0644"}
    assert container["args"] == ["---", "yes", "1e3"]
    assert container["env"][0] == {"name": "SCRIPT", "value": "---\napiVersion: v1\n"}


SCALARS = """\
apiVersion: v1
kind: Pod
metadata: {name: x}
spec:
  containers:
    - name: a
      args: [%s]
"""
QUOTED = (
    "1e3",
    "1E-3",
    "0o17",
    "080",
    "1_000",
    "y",
    "N",
    "on",
    "12:30",
    "1.10",
    "+1",
    ".5",
    "0x1F",
    "~",
    "=",
    "",
)


@pytest.mark.parametrize("value", QUOTED)
def test_text_that_kubectl_would_take_for_something_else_stays_quoted(value: str) -> None:
    output, _ = inject_manifest(SCALARS % f'"{value}"', SETTINGS)
    assert f"- '{value}'\n" in output


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1e3", "1e3"),  # a number to kubectl
        ("y", "y"),  # a boolean to kubectl
        ("0o17", "0o17"),
        ("12:30", "'12:30'"),  # text to kubectl, and 750 in YAML 1.1
        ("=", "'='"),
        ("2026-01-02", "'2026-01-02'"),
        ("0644", "420"),
        ("1.10", "1.1"),
        ("no", "false"),
        ("null", "null"),
    ],
)
def test_plain_values_mean_what_kubectl_reads_in_them(before: str, after: str) -> None:
    output, _ = inject_manifest(SCALARS % before, SETTINGS)
    assert f"    - {after}\n" in output


def test_line_ends_and_letters_stay_as_they_are(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    manifest = MANIFEST.replace("# the end", "# \N{LATIN SMALL LETTER E WITH ACUTE} =").replace("\n", "\r\n")
    file = tmp_path / "windows.yaml"
    file.write_bytes(manifest.encode())
    assert run_inject([str(file)]) == 0
    printed = capfdbinary.readouterr().out
    assert printed.startswith(manifest[: manifest.index("---\r\napiVersion: apps/v1")].encode())
    assert printed.endswith(manifest[manifest.index("---\r\n# ") :].encode())
    assert printed.count(b"\n") == printed.count(b"\r\n")
    file.write_bytes(printed)
    assert run_inject([str(file)]) == 0
    assert capfdbinary.readouterr().out == printed


NASTY = {
    "a byte order mark": "\ufeff" + MANIFEST,
    "a directive, empty documents and an end": "%YAML 1.1\n---\n---\n# c\n---\n" + MANIFEST + "...\n---\n",
    "a definition with an operator as a value": "spec: {enum: [=, '!=', =~]}\n---\n" + MANIFEST,
    "anchors in another document": "kind: X\na: &a {b: 1}\nc: {<<: *a}\n---\n" + MANIFEST,
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_manifests_as_tools_write_them_are_injected_once(text: str) -> None:
    once, notes = inject_manifest(text, SETTINGS)
    assert sum(note.endswith("sidecar added") for note in notes) == 1
    assert once.startswith(text[: text.index("apiVersion: apps/v1")])
    assert once.endswith(text[text.index("---\n# the end") :])
    twice, _ = inject_manifest(once, SETTINGS)
    assert twice == once


def test_what_the_pod_template_has_besides_stays() -> None:
    text = """\
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, creationTimestamp: null}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, creationTimestamp: null}
    spec:
      initContainers: [{name: format, image: x}]
      containers: [{name: db, image: x, volumeMounts: [{name: data, mountPath: /data}]}]
      volumes: [{name: config, configMap: {name: db, defaultMode: 0644}}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
status: {replicas: 0}
"""
    [injected] = documents(inject_manifest(text, SETTINGS)[0])
    [before] = documents(text)
    spec = injected["spec"]["template"]["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["pilotfish-sidecar", "format"]
    assert spec["containers"][0]["name"] == "db"
    assert spec["volumes"][0] == {"name": "config", "configMap": {"name": "db", "defaultMode": 420}}
    for place in ("serviceName", "selector", "volumeClaimTemplates"):
        assert injected["spec"][place] == before["spec"][place]
    assert injected["status"] == before["status"]


def test_anchors_are_written_out() -> None:
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: x}
spec:
  containers:
    - {name: a, image: x, resources: &r {requests: {cpu: 1m}}}
    - {name: b, image: x, resources: *r}
"""
    output, _ = inject_manifest(text, SETTINGS)
    assert "*" not in output
    assert [c["resources"] for c in documents(output)[0]["spec"]["containers"]] == [
        {"requests": {"cpu": "1m"}}
    ] * 2


def test_lists_and_json_are_manifests_too() -> None:
    text = '{"apiVersion": "v1", "kind": "List", "items": [%s, {"apiVersion": "v1", "kind": "Namespace"}]}'
    pod = '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"a"}]}}'
    [found] = documents(inject_manifest(text % pod, SETTINGS)[0])
    assert "initContainers" in found["items"][0]["spec"]
    assert found["items"][1] == {"apiVersion": "v1", "kind": "Namespace"}


def test_a_template_without_metadata_gets_some() -> None:
    workload = templated("Job", "batch/v1")
    del workload["spec"]["template"]["metadata"]
    [injected] = documents(inject_manifest(yaml.safe_dump(workload), SETTINGS)[0])
    assert injected["spec"]["template"]["metadata"] == {"labels": {"mesh.pilotfish.dev/injected": "true"}}


@pytest.mark.parametrize(
    "text", ["", "---\n---\n", "# only a comment\n", "just text\n", "apiVersion: v1\nkind: List\nitems: 5\n"]
)
def test_what_holds_no_workload_is_printed_as_it_is(text: str) -> None:
    assert inject_manifest(text, SETTINGS) == (text, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "document 1 is not YAML"),
        ("a: \x07", "not YAML"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", "Deployment x .document 1.: spec"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\nspec: {}\n",
            "Pod shop/x .document 1.: the pod has no containers",
        ),
    ],
)
def test_mistakes_name_the_document(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        inject_manifest(text, SETTINGS)


def test_the_command_reads_standard_input_and_says_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "root.pem").write_text("ROOT\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MANIFEST.encode())))
    assert run_inject(["-", "--root", str(tmp_path / "root.pem"), "--image", "x:2"]) == 0
    printed = capsys.readouterr()
    assert "image: x:2" in printed.out
    assert "ROOT" in printed.out
    assert printed.err == "Deployment users (document 2): sidecar added\n"


def test_a_file_that_is_not_there_is_status_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_inject(["/nowhere.yaml"]) == 64
    assert capsys.readouterr().err.startswith("error: ")


def test_the_shop_can_be_injected_from_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pilotfish", "inject", str(ROOT / "examples/shop/k8s/users.yaml")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    assert "pilotfish-sidecar" in result.stdout
