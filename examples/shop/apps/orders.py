"""Who ordered what: a plain Flask application that asks `users` with plain `requests`.

    ADDRESS=127.0.1.11 PORT=8080 HTTP_PROXY=http://127.0.1.11:15001 python orders.py

It knows nothing of the mesh: `requests` obeys HTTP_PROXY by itself. The one thing that any mesh needs from
an application is that the calls which it makes for a request carry that request's `traceparent` and
`tracestate`; `opentelemetry-instrument` would do it without a line of code.
"""

from __future__ import annotations

import os
import threading

import requests
from flask import Flask, Response, jsonify, request
from werkzeug.serving import WSGIRequestHandler

REPLICA = os.environ.get("REPLICA", "orders")
USERS = os.environ.get("USERS_URL", "http://users")
TIMEOUT = 10.0
"""Seconds; the mesh's own timeouts and retries come sooner."""

app = Flask(__name__)
_of_thread = threading.local()


def _session() -> requests.Session:
    """One for each thread: a Session must not be shared between them."""
    if not hasattr(_of_thread, "session"):
        _of_thread.session = requests.Session()
    return _of_thread.session


def _user(number: int) -> requests.Response:
    context = {
        name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers
    }
    return _session().get(f"{USERS}/users/{number}", headers=context, timeout=TIMEOUT)


def _order(number: int, customer: requests.Response) -> dict[str, object]:
    user = customer.json()
    return {
        "id": number,
        "customer": user["name"],
        "items": ["coffee", "tea", "cake"][: number % 3 + 1],
        "customer_from": user["served_by"],
        "served_by": REPLICA,
    }


@app.get("/orders")
def list_orders() -> Response:
    return jsonify(orders=list(range(1, 9)), served_by=REPLICA)


@app.get("/orders/<int:number>")
def get_order(number: int) -> tuple[Response, int]:
    customer = _user((number - 1) % 8 + 1)
    if not customer.ok:
        return jsonify(error=f"users answered {customer.status_code}", served_by=REPLICA), 502
    return jsonify(_order(number, customer)), 200


@app.post("/orders")
def create_order() -> tuple[Response, int]:
    """Takes `{"user": NUMBER}`; nothing is stored, the example has no database."""
    customer = _user(int(request.get_json()["user"]))
    if not customer.ok:
        return jsonify(error=f"there is no such user: {customer.status_code}", served_by=REPLICA), 422
    return jsonify(_order(1, customer)), 201


if __name__ == "__main__":
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keep connections open, as production servers do
    app.run(os.environ.get("ADDRESS", "127.0.0.1"), int(os.environ.get("PORT", "8080")), threaded=True)
