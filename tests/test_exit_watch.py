"""When an ordinary sidecar holds the applications of its pod to have completed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sidecar.exit_watch import Completion, application_containers, applications_end
from sidecar.pod import OutboundUntil, Pod, read_pod
from sidecar.runtime.tasks import spawn


def completed_at(completion: Completion, looks: Iterable[tuple[float, str]]) -> float | None:
    """The time of the first look that finds completion; each look: time, and a letter a container."""
    return next((now for now, containers in looks if completion.observe(now, containers)), None)


def test_a_pod_has_completed_when_nobody_was_there_for_two_seconds() -> None:
    looks = [(0.0, ""), (5.0, "a"), (6.0, ""), (7.9, ""), (8.0, "")]
    assert completed_at(Completion(1, False), looks) == 8.0


def test_a_container_that_has_not_begun_is_waited_for() -> None:
    looks = [(0.0, "a"), (1.0, ""), (60.0, ""), (61.0, "b"), (62.0, ""), (64.0, "")]
    assert completed_at(Completion(2, False), looks) == 64.0


def test_quiet_begins_anew_with_each_process() -> None:
    looks = [(0.0, "a"), (1.0, ""), (2.9, "a"), (3.0, ""), (4.9, ""), (5.0, "")]
    assert completed_at(Completion(1, False), looks) == 5.0


def test_where_failed_containers_are_started_anew_that_is_waited_for_and_longer_each_time() -> None:
    once = Completion(1, True)
    assert completed_at(once, [(0.0, "a"), (1.0, ""), (25.9, ""), (26.0, "")]) == 26.0
    twice = Completion(1, True)
    looks = [(0.0, "a"), (1.0, ""), (20.0, "b"), (21.0, ""), (55.9, ""), (56.0, "")]
    assert completed_at(twice, looks) == 56.0
    often = Completion(1, True)
    assert completed_at(often, [(float(n), c) for n, c in enumerate("abcdefghijkl")]) is None
    assert completed_at(often, [(100.0, ""), (414.9, ""), (415.0, "")]) == 415.0


def test_containers_are_told_by_their_control_groups(tmp_path: Path) -> None:
    for pid, group in ((1, "pause"), (7, "app"), (8, "app"), (9, "helper")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/../{group}\n")
    (tmp_path / "10").mkdir()  # ended while it was looked at
    (tmp_path / "meminfo").write_text("")
    assert application_containers(tmp_path, os.getuid() + 1) == {"0::/../app\n", "0::/../helper\n"}
    assert application_containers(tmp_path, os.getuid()) == set()


def test_the_variables_of_the_injector_are_understood() -> None:
    variables = {
        "PILOTFISH_APPLICATIONS": "2",
        "PILOTFISH_APPLICATION_RESTARTS": "true",
        "PILOTFISH_OUTBOUND_UNTIL": "processes",
        "POD_IP": "10.1.2.3",
    }
    assert read_pod(variables) == Pod(
        address="10.1.2.3", applications=2, restarts=True, outbound_until=OutboundUntil.PROCESSES
    )
    assert read_pod({}) == Pod()
    with pytest.raises(ValueError, match="PILOTFISH_APPLICATIONS is 'all'; it takes a number"):
        read_pod({"PILOTFISH_APPLICATIONS": "all"})
    with pytest.raises(
        ValueError, match="PILOTFISH_OUTBOUND_UNTIL is 'noon'; it takes processes or deadline"
    ):
        read_pod({"PILOTFISH_OUTBOUND_UNTIL": "noon"})


def has_ended(until: OutboundUntil, proc: Path) -> bool:
    """What a sidecar knows at its first look."""

    async def first_look() -> bool:
        task = spawn(applications_end(Pod(outbound_until=until), proc), "end")
        await asyncio.sleep(0)
        task.cancel()
        return task.done()

    return asyncio.run(first_look())


def test_in_a_pod_that_ends_applications_have_ended_with_their_processes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert has_ended(OutboundUntil.PROCESSES, tmp_path)
    assert has_ended(OutboundUntil.SIGTERM, tmp_path)
    assert not has_ended(OutboundUntil.DEADLINE, tmp_path)


POD = """
import os, subprocess, sys
application = subprocess.Popen(["sleep", "1"], user=12345)
sidecar = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
application.wait()
print("still there" if sidecar.poll() is None else "gone before the application", flush=True)
print("sidecar ended with", sidecar.wait(20), flush=True)
"""
"""Process 1 of a process namespace that a sidecar and an application share."""


COMPLETES = "watch(Pod(applications=1))"
IS_DELETED = "applications_end(Pod(outbound_until=OutboundUntil.PROCESSES))"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
@pytest.mark.parametrize("waits", [COMPLETES, IS_DELETED])
def test_a_sidecar_ends_after_the_processes_of_its_pod(waits: str) -> None:
    imports = "import asyncio; from sidecar.exit_watch import *; from sidecar.pod import *;"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", POD]
    command.append(f"{imports} asyncio.run({waits})")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout == "still there\nsidecar ended with 0\n", result.stderr
