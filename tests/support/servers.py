"""Real servers as child processes, most of them of Debian's packages: each on a loopback port, in a directory
of its own, as a user of its own where it refuses root."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.processes import Process, eventually

USER = "nobody"


def _as_user(directory: Path) -> list[str]:
    """The command that starts another as USER, when this is root; makes `directory` theirs."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.getuid():
        return []
    found = pwd.getpwnam(USER)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, found.pw_uid, found.pw_gid)
    for parent in directory.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return ["setpriv", f"--reuid={USER}", f"--regid={found.pw_gid}", "--clear-groups"]


def _run(name: str, command: list[str], directory: Path, env: dict[str, str] | None = None) -> None:
    """A step that must end well."""
    variables = [f"{key}={value}" for key, value in (env or {}).items()]
    process = Process(name, ["env", *variables, *command], directory.parent)
    assert process.wait(60) == 0, process.last_words() + process.out.read_text()


def _listening(process: Process, host: str, port: int, patience: float = 60.0) -> Process:
    def answers() -> bool:
        process.check()
        socket.create_connection((host, port), 1.0).close()
        return True

    try:
        eventually(answers, f"{process} to listen", patience)
    except BaseException:
        process.stop()
        raise
    return process


def redis(host: str, port: int, directory: Path) -> Process:
    prefix = _as_user(directory)
    command = [*prefix, "redis-server", "--bind", host, "--port", str(port), "--dir", str(directory)]
    process = Process("redis", [*command, "--save", "", "--protected-mode", "no"], directory.parent)
    return _listening(process, host, port)


def postgres(host: str, port: int, directory: Path, certificate: tuple[bytes, bytes]) -> Process:
    """With TLS of its own, by `certificate` and key in PEM. User and database are `postgres`."""
    directory.mkdir()
    for name, content in zip(("server.crt", "server.key"), certificate, strict=True):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    prefix = _as_user(directory)
    binaries = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name)) / "bin"
    data = directory / "data"
    initialize = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N"]
    _run("initdb", [*prefix, *initialize, "--locale=C", "-E", "UTF8"], directory)
    (data / "pg_hba.conf").write_text("host all all 0.0.0.0/0 trust\n")
    settings = {
        "listen_addresses": host,
        "port": str(port),
        "unix_socket_directories": str(directory),
        "ssl": "on",
        "ssl_cert_file": str(directory / "server.crt"),
        "ssl_key_file": str(directory / "server.key"),
        "fsync": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [*prefix, str(binaries / "postgres"), "-D", str(data), *options]
    process = _listening(Process("postgres", command, directory.parent), host, port)
    ready = [str(binaries / "pg_isready"), "-q", "-h", host, "-p", str(port)]
    eventually(lambda: subprocess.run(ready, check=False).returncode == 0, f"{process} to be ready")
    return process


def mariadb(host: str, port: int, directory: Path) -> Process:
    """User `mesh` without a password, database `test`."""
    prefix = _as_user(directory)
    data = directory / "data"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
    _run("mariadb-install", [*prefix, *install, "--auth-root-authentication-method=normal"], directory)
    start = directory / "start.sql"
    start.write_text("CREATE USER mesh@'%';\nCREATE DATABASE test;\nGRANT ALL ON test.* TO mesh@'%';\n")
    start.chmod(0o644)
    command = [*prefix, "mariadbd", "--no-defaults", f"--datadir={data}", f"--bind-address={host}"]
    command += [f"--port={port}", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
    command += [f"--init-file={start}", "--skip-name-resolve"]
    return _listening(Process("mariadb", command, directory.parent), host, port)


def smtp(host: str, port: int, directory: Path, certificate: tuple[bytes, bytes]) -> Process:
    """Puts what it gets into the Maildir `directory/mail`; STARTTLS by `certificate` and key in PEM."""
    directory.mkdir()
    for name, content in zip(("server.crt", "server.key"), certificate, strict=True):
        (directory / name).write_bytes(content)
    command = [sys.executable, "-m", "aiosmtpd", "--nosetuid", "--listen", f"{host}:{port}"]
    command += ["--tlscert", str(directory / "server.crt"), "--tlskey", str(directory / "server.key")]
    command += ["--no-requiretls", "--class", "aiosmtpd.handlers.Mailbox", str(directory / "mail")]
    return _listening(Process("smtp", command, directory.parent), host, port)


class RabbitMq(Process):
    """The script that is started goes on as the parent of the server proper."""

    def __init__(self, epmd: Process, pid_file: Path, command: list[str], directory: Path) -> None:
        self.epmd = epmd
        self.pid_file = pid_file
        super().__init__("rabbitmq", command, directory)

    def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(self.pid_file.read_text()), signal.SIGKILL)
        super().stop()
        self.epmd.stop()


def _free_port() -> int:
    """Below the ephemeral ports, so that no connection takes it before the server does."""
    while True:
        port = random.SystemRandom().randint(20000, 32000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def rabbitmq(host: str, port: int, directory: Path) -> Process:
    """User `mesh`, password `mesh`. With a port mapper of its own, which always takes 127.0.0.1 too."""
    directory.mkdir()
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {host}:{port}\ndefault_user = mesh\ndefault_pass = mesh\nloopback_users = none\n"
    )
    (directory / "enabled_plugins").write_text("[].\n")
    prefix = _as_user(directory)
    mapper = _free_port()
    env = {
        "HOME": str(directory),
        "PATH": os.environ["PATH"],
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_NODENAME": f"mesh@{host}",
        "RABBITMQ_USE_LONGNAME": "true",
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -start_epmd false",
        "ERL_EPMD_PORT": str(mapper),
    }
    epmd = Process("epmd", [*prefix, "epmd", "-address", host, "-port", str(mapper)], directory.parent)
    variables = [f"{key}={value}" for key, value in env.items()]
    script = next(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    command = [*prefix, "env", *variables, str(script)]
    return _listening(RabbitMq(epmd, directory / "pid", command, directory.parent), host, port, 90.0)
