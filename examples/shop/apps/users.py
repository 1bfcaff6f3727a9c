"""Who the customers are: a plain Flask application that knows nothing of the mesh.

ADDRESS=127.0.1.1 PORT=8080 python users.py
"""

from __future__ import annotations

import os

from flask import Flask, Response, abort, jsonify
from werkzeug.serving import WSGIRequestHandler

REPLICA = os.environ.get("REPLICA", "users")
NAMES = ("Ada", "Barbara", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Radia")

app = Flask(__name__)


@app.get("/users")
def list_users() -> Response:
    return jsonify(
        users=[{"id": number, "name": name} for number, name in enumerate(NAMES, 1)], served_by=REPLICA
    )


@app.get("/users/<int:number>")
def get_user(number: int) -> Response:
    if not 1 <= number <= len(NAMES):
        abort(404)
    return jsonify(id=number, name=NAMES[number - 1], served_by=REPLICA)


if __name__ == "__main__":
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keep connections open, as production servers do
    app.run(os.environ.get("ADDRESS", "127.0.0.1"), int(os.environ.get("PORT", "8080")), threaded=True)
