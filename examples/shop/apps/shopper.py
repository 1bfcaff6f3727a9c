"""Somebody who uses the shop all the time: plain `requests` and plain `grpcio`, without a retry of their own.

    HTTP_PROXY=http://127.0.1.31:15001 http_proxy=http://127.0.1.31:15001 python shopper.py

Writes one JSON line for each call to standard output. Reads words from standard input: `calm` allows POSTs,
`rough` stops them (what is not idempotent cannot be sent twice), and the end of input ends the program.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable

import greeter_pb2
import greeter_pb2_grpc
import grpc
import requests

ORDERS = os.environ.get("ORDERS_URL", "http://orders")
USERS = os.environ.get("USERS_URL", "http://users")
GREETER = os.environ.get("GREETER", "greeter:50051")
PAUSE = float(os.environ.get("PAUSE", "0.04"))
"""Seconds between two calls of one customer."""
CUSTOMERS = 3
TIMEOUT = 10.0
PATIENT = {"x-patience": "long"}
ROUTE_HEADER = "x-shop-route"

calm = threading.Event()
over = threading.Event()
_writing = threading.Lock()

Outcome = tuple[bool, str, str, str]
"""Whether it went well, the status, who served it, and what the route says of itself."""


def report(call: str, attempt: Callable[[], Outcome]) -> None:
    """Makes one call and writes its line: `start` in Unix time, `seconds` until the answer was complete."""
    start = time.time()
    began = time.perf_counter()
    try:
        ok, status, served_by, route = attempt()
    except (requests.RequestException, grpc.RpcError) as error:
        ok, served_by, route = False, "", ""
        status = (
            f"grpc {error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else repr(error)
        )
    line = {
        "call": call,
        "start": start,
        "seconds": time.perf_counter() - began,
        "ok": ok,
        "status": status,
        "served_by": served_by,
        "route": route,
    }
    with _writing:
        print(json.dumps(line), flush=True)


def http(
    session: requests.Session,
    method: str,
    url: str,
    body: object = None,
    headers: dict[str, str] | None = None,
) -> Outcome:
    response = session.request(method, url, json=body, headers=headers, timeout=TIMEOUT)
    served_by = response.json().get("served_by", "") if response.ok else response.text[:200]
    return response.ok, str(response.status_code), served_by, response.headers.get(ROUTE_HEADER, "")


def customer(number: int) -> None:
    """GETs an order, a user, the list of orders, in turn; now and then orders something."""
    session = requests.Session()
    for turn in itertools.count(number):
        if over.wait(PAUSE * random.uniform(0.5, 1.5)):
            return
        one = turn % 8 + 1
        kind = turn % 5
        if kind in (0, 1):
            report("GET /orders/N", lambda one=one: http(session, "GET", f"{ORDERS}/orders/{one}"))
        elif kind == 2:
            report("GET /users/N", lambda one=one: http(session, "GET", f"{USERS}/users/{one}"))
        elif kind == 3:  # the users route treats callers who can wait differently
            report("GET /users", lambda: http(session, "GET", f"{USERS}/users", headers=PATIENT))
        elif calm.is_set():
            report("POST /orders", lambda one=one: http(session, "POST", f"{ORDERS}/orders", {"user": one}))
        else:
            report("GET /orders", lambda: http(session, "GET", f"{ORDERS}/orders"))


def guest() -> None:
    """Is greeted again and again; every fourth time in all languages."""
    with grpc.insecure_channel(GREETER) as channel:
        greeter = greeter_pb2_grpc.GreeterStub(channel)
        request = greeter_pb2.HelloRequest(name="shopper")

        def hello() -> Outcome:
            return True, "grpc OK", greeter.SayHello(request, timeout=TIMEOUT).served_by, ""

        def hellos() -> Outcome:
            replies = list(greeter.SayHelloInAllLanguages(request, timeout=TIMEOUT))
            return len(replies) == 5, f"grpc OK, {len(replies)} messages", replies[-1].served_by, ""

        for turn in itertools.count():
            if over.wait(PAUSE * random.uniform(0.5, 1.5)):
                return
            if turn % 4:
                report("gRPC SayHello", hello)
            else:
                report("gRPC SayHelloInAllLanguages", hellos)


def main() -> None:
    calm.set()
    threads = [threading.Thread(target=customer, args=(number,)) for number in range(CUSTOMERS)]
    threads.append(threading.Thread(target=guest))
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        if line.strip() == "calm":
            calm.set()
        elif line.strip() == "rough":
            calm.clear()
    over.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
