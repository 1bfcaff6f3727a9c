"""The status page: from the values of `/status.json` to HTML that a person reads.

Called by `control_plane.status`. All that it prints is escaped: node ids and NACK texts come from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; }
body { padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border-bottom: 1px solid #d9dee4; }
th { font-weight: 600; color: #57606a; } code { font-size: .9em; }
.good { color: #116329; } .bad { color: #a40e26; } .wait { color: #7d4e00; }
"""


def render(status: dict[str, Any]) -> str:
    """`status` as `control_plane.status.status_of` makes it."""
    body = "".join(
        (
            f"<h1>pilotfish control plane &middot; {escape(status['trust_domain'])}</h1>",
            _summary(status),
            "<h2>Configuration</h2>",
            _problems(status["problems"]),
            f"<h2>Clients ({len(status['clients'])})</h2>",
            _clients(status["clients"]),
            "<h2>Certificates</h2>",
            _certificates(status["certificates"]),
            '<p><a href="/status.json">status.json</a> &middot; <a href="/metrics">metrics</a></p>',
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        f"<title>pilotfish control plane</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _summary(status: dict[str, Any]) -> str:
    if status["not_ready"]:
        return f'<p class="bad">Not ready: {escape(status["not_ready"])}</p>'
    behind = sum(not client["in_step"] for client in status["clients"])
    if behind:
        return f'<p class="wait">Ready. {behind} of {len(status["clients"])} clients are not in step.</p>'
    return '<p class="good">Ready. All clients are in step.</p>'


def _problems(problems: list[dict[str, Any]]) -> str:
    if not problems:
        return '<p class="good">No problems.</p>'
    rows = (
        (_colour(p["severity"], "bad" if p["severity"] == "error" else "wait"), *map(escape, _place(p)))
        for p in problems
    )
    return _table(("", "File", "Object", "Field", "Problem"), rows)


def _place(problem: dict[str, Any]) -> tuple[str, str, str, str]:
    line = f":{problem['line']}" if problem["line"] else ""
    return f"{problem['file']}{line}", problem["object"], problem["field"], problem["message"]


def _clients(clients: list[dict[str, Any]]) -> str:
    if not clients:
        return "<p>None is connected.</p>"
    rows = (
        (
            escape(client["node"]),
            escape(client["identity"]),
            escape(f"{client['dialect']}, {client['variant']}"),
            escape(client["connected_at"]),
            "<br>".join(_type_row(t) for t in client["types"]),
            _colour("in step", "good") if client["in_step"] else _why(client),
        )
        for client in clients
    )
    return _table(("Node", "Identity", "Client", "Connected", "Accepted versions", "State"), rows)


def _type_row(state: dict[str, Any]) -> str:
    count = "all" if state["wildcard"] else str(state["names"])
    accepted = escape(state["accepted_version"] or "none")
    return f"{escape(state['type'])} <code>{accepted}</code> ({count})"


def _why(client: dict[str, Any]) -> str:
    lines = []
    for state in client["types"]:
        if state["refused"] is not None:
            refused = state["refused"]
            names = ", ".join(refused["names"])
            text = f"{state['type']} refused {names} at {refused['time']}: {refused['text']}"
            lines.append(_colour(text, "bad"))
        elif not state["in_step"]:
            lines.append(_colour(f"{state['type']} {state['state']}", "wait"))
    return "<br>".join(lines)


def _certificates(certificates: dict[str, Any]) -> str:
    days = certificates["root_days_left"]
    rows = [
        ("Root expires", escape(certificates["root_not_after"]), _colour(f"{days} days", _days_class(days))),
        ("Control plane's own expires", escape(certificates["serving_not_after"] or ""), ""),
        ("Signed since start", str(certificates["signed"]), ""),
        ("Refused since start", str(certificates["refused"]), ""),
    ]
    return _table(("", "", ""), rows)


def _days_class(days: int) -> str:
    return "bad" if days < 30 else "wait" if days < 180 else "good"


def _colour(text: str, style: str) -> str:
    return f'<span class="{style}">{escape(text)}</span>'


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Cells are HTML already."""
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + f"</tr>{lines}</table>"
