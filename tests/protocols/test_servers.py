"""Real servers and their real Python clients with two sidecars between them, on three ways: by a local port
that is a named upstream, by a CONNECT tunnel to a port that is declared or known to be opaque, and by one to
a port that says nothing, where the first bytes decide. SMTP needs no Debian packages: `test_smtp.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.certs import TestCa, make_ca
from tests.support.pairs import WAYS, World
from tests.support.processes import stopping

pytestmark = [pytest.mark.debian, pytest.mark.timeout(180)]

DECLARED = [
    {"service": "redis", "port": 6379},
    {"service": "postgres", "name": "postgres", "port": 5432},
    {"service": "mariadb", "name": "db", "appProtocol": "mysql", "port": 3306},
    {"service": "rabbitmq", "name": "amqp", "port": 5672},
]
SILENT = [{"service": f"{x['service']}-silent", "port": x["port"] + 1000, "at": x["port"]} for x in DECLARED]
UPSTREAMS = {x["port"] + 10000: x["service"] for x in DECLARED}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("servers"), [*DECLARED, *SILENT], UPSTREAMS)
    try:
        yield made.ready()
    finally:
        made.stop()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, behind: World) -> Iterator[str]:
    """How clients get there. Nobody waits for a silent side on any of them."""
    before = behind.detected()
    yield request.param
    after = behind.detected()
    assert after["timeouts"] == before["timeouts"]
    assert after.get("tcp", 0) > before.get("tcp", 0) or request.param == "upstream"


def address(behind: World, way: str, port: int) -> tuple[str, int]:
    """Where a client of the server on `port` connects to."""
    (name,) = [x["service"] for x in DECLARED if x["port"] == port]
    if way == "upstream":
        return behind.caller_host, port + 10000
    authority = f"{name}.shop:{port}" if way == "connect" else f"{name}-silent.shop:{port + 1000}"
    return behind.relay(authority).address


def large(size: int = 2_000_000) -> bytes:
    return bytes(range(256)) * (size // 256)


@pytest.fixture(scope="module")
def redis_server(behind: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with stopping(servers.redis(behind.host, 6379, tmp_path_factory.mktemp("redis") / "data")):
        yield


@pytest.mark.usefixtures("redis_server")
def test_redis(behind: World, way: str) -> None:
    import redis

    host, port = address(behind, way, 6379)
    with redis.Redis(host, port, socket_timeout=20) as client:
        client.flushall()
        client.set("large", large())
        assert client.get("large") == large()
        with client.pipeline() as pipe:
            for _ in range(1000):
                pipe.incr("n")
            assert pipe.execute() == list(range(1, 1001))
        with client.pubsub() as listener:
            listener.subscribe("news")
            assert listener.get_message(timeout=10)["type"] == "subscribe"
            assert client.publish("news", "hello") == 1
            assert listener.get_message(timeout=10)["data"] == b"hello"


@pytest.fixture(scope="module")
def postgres_ca(behind: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCa]:
    """Whose certificate the server has."""
    ca = make_ca()
    directory = tmp_path_factory.mktemp("postgres") / "data"
    with stopping(servers.postgres(behind.host, 5432, directory, ca.issue(dns=["database.test"]))):
        yield ca


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "verify-full"])
def test_postgresql(behind: World, way: str, postgres_ca: TestCa, tmp_path: Path, sslmode: str) -> None:
    """`prefer` and `verify-full` begin with SSLRequest, and the server's own TLS goes through untouched."""
    import psycopg

    (tmp_path / "root.pem").write_bytes(postgres_ca.ca_pem)
    host, port = address(behind, way, 5432)
    with psycopg.connect(
        host="database.test",
        hostaddr=host,
        port=port,
        user="postgres",
        sslmode=sslmode,
        sslrootcert=str(tmp_path / "root.pem"),
        connect_timeout=20,
    ) as connection:
        used = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert used == (sslmode != "disable",)
        connection.execute("CREATE TEMPORARY TABLE t (n int, data bytea)")
        with connection.cursor().copy("COPY t (n) FROM STDIN") as copy:
            for i in range(10_000):
                copy.write_row((i,))
        assert connection.execute("SELECT sum(n) FROM t").fetchone() == (49_995_000,)
        assert connection.execute("SELECT %b::bytea", (large(),)).fetchone() == (large(),)


@pytest.fixture(scope="module")
def mariadb_server(behind: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with stopping(servers.mariadb(behind.host, 3306, tmp_path_factory.mktemp("mariadb") / "data")):
        yield


@pytest.mark.usefixtures("mariadb_server")
def test_mariadb(behind: World, way: str) -> None:
    """Its server speaks first."""
    import pymysql

    host, port = address(behind, way, 3306)
    with (
        pymysql.connect(host=host, port=port, user="mesh", database="test", connect_timeout=20) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TEMPORARY TABLE t (n INT, data LONGBLOB)")
        cursor.executemany("INSERT INTO t (n) VALUES (%s)", [(i,) for i in range(1000)])
        cursor.execute("SELECT SUM(n) FROM t")
        assert cursor.fetchone() == (499_500,)
        cursor.execute("SELECT %s", (b"x" * 2_000_000,))
        assert len(cursor.fetchone()[0]) == 2_000_000


@pytest.fixture(scope="module")
def rabbitmq_server(behind: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with stopping(servers.rabbitmq(behind.host, 5672, tmp_path_factory.mktemp("rabbitmq") / "data")):
        yield


@pytest.mark.usefixtures("rabbitmq_server")
def test_rabbitmq(behind: World, way: str) -> None:
    import pika

    credentials = pika.PlainCredentials("mesh", "mesh")
    host, port = address(behind, way, 5672)
    parameters = pika.ConnectionParameters(host, port, credentials=credentials, socket_timeout=30)
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    for i in range(100):
        channel.basic_publish("", queue, b"%d" % i)
    channel.basic_publish("", queue, large())
    got = []
    for method, _, body in channel.consume(queue, inactivity_timeout=20):
        got.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(got) == 101:
            break
    connection.close()
    assert got == [b"%d" % i for i in range(100)] + [large()]
