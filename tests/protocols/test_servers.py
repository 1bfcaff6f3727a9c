"""Real servers and their real Python clients with two sidecars between them: by local ports that are named
upstreams, and Redis through a CONNECT tunnel too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.certs import make_ca
from tests.support.pairs import World
from tests.support.processes import stopping

pytestmark = [pytest.mark.debian, pytest.mark.timeout(180)]

PORTS = [
    {"service": "redis", "port": 6379},
    {"service": "postgres", "name": "postgres", "port": 5432},
    {"service": "mariadb", "name": "db", "appProtocol": "mysql", "port": 3306},
    {"service": "rabbitmq", "name": "amqp", "port": 5672},
]
UPSTREAMS = {16379: "redis", 15432: "postgres", 13306: "mariadb", 15672: "rabbitmq"}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("servers"), PORTS, UPSTREAMS)
    try:
        yield made.ready()
    finally:
        made.stop()


def large(size: int = 2_000_000) -> bytes:
    return bytes(range(256)) * (size // 256)


@pytest.mark.parametrize("way", ["upstream", "connect"])
def test_redis(behind: World, tmp_path: Path, way: str) -> None:
    import redis

    class Tunnel(redis.Connection):  # type: ignore[misc]
        """Opens its socket through the sidecar's proxy port."""

        def _connect(self) -> socket.socket:
            return behind.tunnel("redis.shop:6379").sock

    with stopping(servers.redis(behind.host, 6379, tmp_path / "redis")):
        if way == "upstream":
            client = redis.Redis(behind.caller_host, 16379, socket_timeout=20)
        else:
            client = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Tunnel))
        with client:
            assert client.ping()
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


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "verify-full"])
def test_postgresql(behind: World, tmp_path: Path, sslmode: str) -> None:
    """`prefer` and `verify-full` begin with SSLRequest, and the server's own TLS goes through untouched."""
    import psycopg

    ca = make_ca()
    (tmp_path / "root.pem").write_bytes(ca.ca_pem)
    certificate = ca.issue(dns=["database.test"])
    with (
        stopping(servers.postgres(behind.host, 5432, tmp_path / "postgres", certificate)),
        psycopg.connect(
            host="database.test",
            hostaddr=behind.caller_host,
            port=15432,
            user="postgres",
            sslmode=sslmode,
            sslrootcert=str(tmp_path / "root.pem"),
            connect_timeout=20,
        ) as connection,
    ):
        used = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert used == (sslmode != "disable",)
        connection.execute("CREATE TABLE t (n int, data bytea)")
        with connection.cursor().copy("COPY t (n) FROM STDIN") as copy:
            for i in range(10_000):
                copy.write_row((i,))
        assert connection.execute("SELECT sum(n) FROM t").fetchone() == (49_995_000,)
        assert connection.execute("SELECT %b::bytea", (large(),)).fetchone() == (large(),)


def test_mariadb(behind: World, tmp_path: Path) -> None:
    """Its server speaks first."""
    import pymysql

    with (
        stopping(servers.mariadb(behind.host, 3306, tmp_path / "mariadb")),
        pymysql.connect(
            host=behind.caller_host, port=13306, user="mesh", database="test", connect_timeout=20
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE t (n INT, data LONGBLOB)")
        cursor.executemany("INSERT INTO t (n) VALUES (%s)", [(i,) for i in range(1000)])
        cursor.execute("SELECT SUM(n) FROM t")
        assert cursor.fetchone() == (499_500,)
        cursor.execute("SELECT %s", (b"x" * 2_000_000,))
        assert len(cursor.fetchone()[0]) == 2_000_000


def test_rabbitmq(behind: World, tmp_path: Path) -> None:
    import pika

    parameters = pika.ConnectionParameters(
        behind.caller_host, 15672, credentials=pika.PlainCredentials("mesh", "mesh"), socket_timeout=30
    )
    with stopping(servers.rabbitmq(behind.host, 5672, tmp_path / "rabbitmq")):
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
