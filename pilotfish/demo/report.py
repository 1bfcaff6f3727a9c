"""What the demo prints, with rich. Every function takes facts and numbers; none goes and gets any."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pilotfish.demo.facts import Fact
from pilotfish.demo.processes import tail
from pilotfish.demo.routes import Row
from pilotfish.demo.spans import Span, Trace
from pilotfish.demo.topology import SHOPPER, STATUS, Replica

BAR_CELLS = 16
"""Width of the bars beside a trace."""


def identity_table(rows: Iterable[tuple[Replica, str]]) -> Table:
    """Each workload with the SPIFFE id that its sidecar's certificate carries."""
    table = _table("Services and their identities", "workload", "address", "port", "identity")
    for replica, identity in rows:
        port = str(replica.port) if replica.port else "-"
        table.add_row(replica.name, replica.address, port, identity or "[red]none[/]")
    return table


def _table(title: str, *headings: str) -> Table:
    """Narrow enough for 80 columns, where boxes would cost a quarter of them."""
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def route_table(rows: Sequence[Row]) -> Table:
    """One row for each route."""
    table = _table("Routes, as the callers' sidecars saw them (times in ms)", "route and its callers")
    for heading in ("requests", "success", "retries", "p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("served by", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.route}\n[dim]from {', '.join(sorted(row.callers))}[/]",
            f"{row.requests:,}",
            _percent(row),
            f"{row.retries:,}",
            f"{row.quantile(0.5):.1f}",
            f"{row.quantile(0.99):.1f}",
            "\n".join(f"{name} {count}" for name, count in sorted(row.served.items())),
        )
    return table


def _percent(row: Row) -> str:
    """Never rounded up to 100: one failure in a million is one failure."""
    if not row.failed:
        return "100 %"
    return f"[red]{min(99.99, row.success_rate * 100):.2f} %[/]"


def trace_tree(trace: Trace) -> Table:
    """Every span under the one that caused it, how long it took, and a bar for when."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, min_width=BAR_CELLS)
    for depth, span in trace.walk():
        style = "red" if span.failed else "green"
        branch = f"[dim]{'  ' * (depth - 1)}└ [/]" if depth else ""
        table.add_row(
            f"{branch}{_span(span)}", f"[{style}]{span.milliseconds:.1f} ms[/]", _bar(span, trace.root)
        )
    return table


def _span(span: Span) -> str:
    """A client span has the name of the server span above it; where it went says more."""
    what = escape(span.name)
    if span.kind == "client":
        endpoint = str(span.attributes.get("pilotfish.endpoint", "?"))
        # An address and port instead of a replica's name: the application beside the sidecar.
        what = "→ its application" if ":" in endpoint else f"→ {escape(endpoint)}"
    notes = []
    if retry := int(span.attributes.get("http.request.resend_count", 0)):
        notes.append(f"attempt {retry + 1}")
    if span.failed:
        notes.append(str(span.attributes.get("error.type", "failed")))
    note = f" [yellow]({escape(', '.join(notes))})[/]" if notes else ""
    return f"[bold]{escape(span.instance or span.service)}[/] {span.kind} {what}{note}"


def _bar(span: Span, root: Span) -> str:
    """Where in the whole trace's time this span lies; at least one cell long."""
    whole = max(1, root.end - root.start)
    begin = min(BAR_CELLS - 1, max(0, int((span.start - root.start) / whole * BAR_CELLS)))
    end = min(BAR_CELLS, max(begin + 1, round((span.end - root.start) / whole * BAR_CELLS)))
    return f"[blue]{' ' * begin}{'━' * (end - begin)}[/]"


def facts_table(facts: Iterable[Fact]) -> Table:
    table = Table(
        title="\nWhat had to hold", title_justify="left", show_header=False, box=None, padding=(0, 1, 0, 0)
    )
    for fact in facts:
        mark = "[green]✓[/]" if fact.held else "[red]✗[/]"
        table.add_row(mark, f"{escape(fact.name)}: [dim]{escape(fact.detail)}[/]")
    return table


def verdict(facts: Sequence[Fact]) -> str:
    broken = [fact for fact in facts if not fact.held]
    if not broken:
        return f"[green]All {len(facts)} facts held.[/]"
    names = "\n".join(f"  ✗ {escape(fact.name)}: {escape(fact.detail)}" for fact in broken)
    return f"[red]{len(broken)} of {len(facts)} facts did not hold:[/]\n{names}"


def show_taken(
    console: Console, taken: Iterable[tuple[str, int, str]], wanted: dict[tuple[str, int], str]
) -> None:
    """Ports that the demo needs and cannot have."""
    console.print("[red]The demo cannot start: it needs these addresses.[/]")
    for address, port, reason in taken:
        console.print(f"  {address}:{port} for {wanted[address, port]} {reason}", highlight=False)
    console.print("See which program holds one with  ss -ltnp 'sport = :PORT'  stop it, then start again.")


def show_failure(console: Console, message: str, log: Path | None, logs: Path) -> None:
    console.print(f"[red]The demo failed:[/] {escape(message)}")
    if log is not None and log.exists():
        console.print(f"[dim]the last lines of {log}:[/]")
        console.print(escape(tail(log)), highlight=False)
    console.print(f"All logs stay in {logs}")


def show_addresses(console: Console, replicas: Iterable[Replica], config: Path, apps: Path) -> None:
    """What a person can try while `--keep` leaves the mesh running."""
    proxy = SHOPPER.proxy
    lines = [
        "",
        "[bold]The mesh keeps running, and what was killed runs again. Ctrl-C ends it.[/]",
        f"  control plane  http://{STATUS}/",
        *(f"  {replica.name:13}  http://{replica.admin}/" for replica in replicas),
        f"  configuration  {config} (save a file there and traffic follows)",
        "Send requests as the shopper, through its sidecar:",
        f"  curl -x {proxy} http://orders/orders/1",
        f"  curl -x {proxy} http://users/users/1",
        f"  http_proxy={proxy} {sys.executable} {apps / 'greeter_client.py'} Ada",
    ]
    console.print("\n".join(lines), soft_wrap=True)
