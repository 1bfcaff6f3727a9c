"""`pilotfish capture` on the command line: what is refused before anything is done, and what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pilotfish.cli import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["install", "--skip-inbound-ports", "9090,http"], "port 'http': expected a number"),
        (["install", "--skip-outbound-ports", "90-80"], "port '90-80': expected 1 to 65535, the lower first"),
        (["check", "--exclude-cidr", "10.0.0.1/8"], "CIDR '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
        (["install", "--inbound-port", "15001"], "outbound, inbound and admin port must differ"),
        (["install", "--outbound-port", "x"], "invalid int value: 'x'"),
        (["install", "--proxy-uid", "-1"], "user -1"),
        (["install", "--backend", "ebpf"], "invalid choice: 'ebpf'"),
        (["remove", "--backend", "nft"], "unrecognized arguments"),
        ([], "required: ACTION"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["capture", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_verb_imports_the_standard_library_alone() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import pilotfish.cli, pilotfish.capture.command\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(names - sys.stdlib_module_names))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["mesh_api", "pilotfish"]
