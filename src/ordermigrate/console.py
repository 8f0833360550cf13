"""What people see: progress on stderr while a command works, its result on stdout.

In a terminal progress is one live bar; elsewhere it is plain lines, a few a minute. An estimate
is marked with `~`. Colour follows the terminal and NO_COLOR.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ordermigrate import progress as events
from ordermigrate.findings import SEVERITIES
from ordermigrate.meters import CopyMeter, SyncMeter, format_bytes, format_seconds
from ordermigrate.phases import NextStep
from ordermigrate.progress import Event

LINE_SECONDS = 5.0
_FIGURES_WIDTH = 78
_WIDE = 100
_MARKS = {"equal": "[green]equal[/]", "different": "[bold red]DIFFERENT[/]"}


MAX_QUARANTINED = 20
MAX_PLACES = 10


def describe_event(event: Event) -> str | None:  # noqa: C901, PLR0911, PLR0912, PLR0915  one line an event
    """Return an event as a line for people; None for those that are only counted."""
    match event:
        case events.Prepared(run=run, steps=steps):
            return "\n".join([f"prepared migration {run}", *(f"  {step}" for step in steps)])
        case events.IndexesDropped(table=table, names=names):
            return f"{table}: {len(names)} indexes and keys are off for the load"
        case events.SnapshotTaken(attempt=attempt, chunks_total=total, chunks_copied=copied):
            rest = f", {copied} of them copied already" if copied else ""
            return f"attempt {attempt}: {total} {'chunk' if total == 1 else 'chunks'}{rest}"
        case events.ChunkFound(table=table, chunk=chunk):
            return f"{table}: chunk {chunk} was committed by an earlier try"
        case events.LeafRewritten(table=table, leaf=leaf, rows_removed=rows):
            return f"{table}: {leaf} was rewritten, or away; its {rows:,} rows come again"
        case events.AttemptEnded(attempt=attempt, reason=reason):
            return f"attempt {attempt} ended: {reason}; going on under a new snapshot"
        case events.RowsCopied(rows=rows, bytes=size, seconds=seconds):
            rate = rows / max(seconds, 1e-6)
            return (
                f"copied {rows:,} rows ({format_bytes(size)}) in {format_seconds(seconds)}, "
                f"{rate:,.0f} rows/s"
            )
        case events.IndexBuilt(table=table, index=index, seconds=seconds, remaining=remaining):
            rest = f", {remaining} to go" if remaining else ""
            return f"{table}: built {index} in {format_seconds(seconds)}{rest}"
        case events.Analyzed(table=table, seconds=seconds):
            return f"{table}: statistics gathered in {format_seconds(seconds)}"
        case events.LeafGone(table=table, leaf=leaf, rows_removed=rows):
            return f"{table}: {leaf} is not part of it any more; its {rows:,} rows were removed"
        case events.Subtracted(table=table, rows=rows):
            return f"{table}: {rows:,} rows had changed between two snapshots; sync brings them"
        case events.Throttled(reason=reason):
            return f"the copy waits: {reason}" if reason else "the copy goes on"
        case events.Following(run=run, source=source):
            return f"following the {source} (migration {run})"
        case events.Freezing(side=side):
            return f"all is ready; the {side}'s writers are to wait now"
        case events.Frozen(side=side):
            return f"frozen: writers wait at the {side}"
        case events.Drained(round=number, changes=changes):
            return f"drained: the last round, {number:,}, took {changes:,} changes"
        case events.LetGo(side=side):
            return f"the {side} has let go, and is fenced off"
        case events.TakenOver(side=side, pause_seconds=pause):
            said = f"; the pause was {pause * 1000:.0f} ms at most" if pause else ""
            return f"the {side} has taken over: it owns the tables{said}"
        case events.TakenBack(side=side, reason=reason):
            return f"the {side} owns the tables again: {reason}"
        case events.Reclaimed(since=since, rows=rows):
            return f"{rows:,} rows that the service has written since {since} are to come back"
        case events.Settled(found=found):
            return "\n".join(found) or None
        case events.StructureSettled(found=found):
            return "\n".join(found)
        case events.ValidationVoided(reason=reason):
            return f"what was proved before is void: {reason}"
        case events.TrafficHeldBack(side=side, was_percentage=was, lag_seconds=lag):
            return (
                f"reads are held back: 0 % go to the service by the {side}'s word, {was} % did; "
                f"the service is {lag:.1f} s behind"
            )
        case events.Cancelled(run=run):
            return f"migration {run} is gone from both sides"
        case events.CleanupBegun(run=run):
            return f"cleaning up after migration {run}"
        case events.BackedUp(file=file, bytes=size, seconds=seconds):
            return f"backed up to {file} ({format_bytes(size)}) in {format_seconds(seconds)}"
        case events.TablesRenamed(tables=tables):
            return "\n".join(["renamed on the monolith", *(f"  {each}" for each in tables)])
        case events.NamesRestored(tables=tables):
            return f"names given back on the monolith: {', '.join(tables) or 'none'}"
        case events.TablesDropped(tables=tables):
            return f"dropped on the monolith: {', '.join(tables)}"
        case events.TraceRemoved(side=side):
            return f"nothing of ordermigrate is left on the {side}"
        case events.Repairing(table=table, rows=rows):
            noun = "differing row is" if rows == 1 else "differing rows are"
            return f"{table}: {rows:,} {noun} marked to be applied again"
        case events.RowsQuarantined(table=table, rows=rows):
            return (
                f"{table}: {rows:,} {'row was' if rows == 1 else 'rows were'} put into quarantine"
            )
        case events.CheckFinished(table=table, check=check, outcome=outcome, seconds=seconds):
            return f"{table}: {check}: {outcome} ({format_seconds(seconds)})"
        case events.Locating(table=table, parts=parts, parts_total=total):
            return f"{table}: {parts} of {total} parts differ; looking for the rows"
        case _:
            return None


class PlainReporter:
    """Progress as plain lines on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self._meter = CopyMeter()
        self._sync = SyncMeter()
        self._said = 0.0

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def report(self, event: Event) -> None:
        """Print a line, or count a chunk and print the sum now and then."""
        if isinstance(event, events.SnapshotTaken):
            self._meter.begin(event)
        if isinstance(event, events.ChunkCopied | events.BytesMoved):
            if isinstance(event, events.ChunkCopied):
                self._meter.add(event)
            else:
                self._meter.move(event)
            if time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                self._print(f"copying: {self._meter.describe()}")
        elif isinstance(event, events.RoundApplied | events.Quiet | events.SyncWaits):
            is_news = self._sync.take(event)
            if is_news or time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                self._print(self._sync.describe())
        elif line := describe_event(event):
            self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201  this is the output


class _Figures(ProgressColumn):
    """Rows, bytes, rate and remaining time of the copy."""

    def render(self, task: Task) -> Text:
        """Draw them."""
        return Text(str(task.fields.get("figures", "")), overflow="ellipsis", no_wrap=True)


class LiveReporter:
    """Progress as a live bar on a terminal, with lines above it for what is done."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._meter = CopyMeter()
        self._sync = SyncMeter()
        is_wide = self._console.width >= _WIDE
        self._progress = Progress(
            *([SpinnerColumn()] if is_wide else []),
            TextColumn("{task.description}"),
            # The figures say more than the bar does: in a narrow terminal they have the room.
            BarColumn(bar_width=max(4, min(24, self._console.width - _FIGURES_WIDTH))),
            _Figures(),
            *([TimeElapsedColumn()] if is_wide else []),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("connecting", total=None)
        self._builds: list[str] = []

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave a clean screen."""
        self._progress.stop()

    def report(self, event: Event) -> None:
        """Draw it."""
        match event:
            case events.SnapshotTaken():
                self._meter.begin(event)
                self._draw("copying", self._meter.chunks, self._meter.chunks_total)
            case events.ChunkCopied():
                self._meter.add(event)
                self._draw_copy()
            case events.BytesMoved():
                self._meter.move(event)
                self._draw_copy()
            case events.IndexStarted(index=index):
                self._builds.append(index)
                self._draw("building " + ", ".join(self._builds[-2:]), None, None)
            case events.IndexBuilt(index=index):
                self._builds = [name for name in self._builds if name != index]
                if self._builds:
                    self._draw("building " + ", ".join(self._builds[-2:]), None, None)
                else:
                    self._draw("gathering statistics", None, None)
            case events.RoundApplied() | events.Quiet() | events.SyncWaits():
                self._draw_sync(event)
            case events.CheckStarted(table=table, check=check, rows_estimate=rows):
                size = f"~{rows:,} rows" if rows else ""
                self._draw(f"{table}: {check}", None, None, size)
            case _:
                self._draw_change(event)
        if line := describe_event(event):
            self._console.print(f"[dim]{escape(line)}[/]")

    def _draw_change(self, event: Event) -> None:
        match event:
            case events.Frozen(side=side):
                self._draw(f"writers wait at the {side}", None, None)
            case events.TakenOver(side=side) | events.TakenBack(side=side):
                self._draw(f"the {side} owns the tables; the rest at leisure", None, None)
            case _:
                pass

    def _draw_sync(self, event: Event) -> None:
        if self._sync.take(event):
            self._console.print(f"[dim]{escape(self._sync.waits)}[/]")
        meter = self._sync
        figures = (
            f"round {meter.round:,}, lag {meter.lag_seconds:.1f} s, backlog {meter.remaining:,}, "
            f"{meter.changes:,} changes"
        )
        what = {"-": "syncing", "idle": "in sync"}.get(meter.waits, "waiting")
        self._draw(what, None, None, figures)

    def _draw_copy(self) -> None:
        meter = self._meter
        self._draw("copying", meter.chunks_done, meter.chunks_total, meter.describe())

    def _draw(
        self, what: str, completed: float | None, total: int | None, figures: str = ""
    ) -> None:
        self._progress.update(
            self._task,
            description=escape(what),
            completed=completed or 0,
            total=total,
            figures=figures,
        )


def make_reporter() -> PlainReporter | LiveReporter:
    """Return the reporter that fits where stderr leads."""
    console = Console(stderr=True, highlight=False)
    return (
        LiveReporter(console)
        if console.is_terminal and not console.is_dumb_terminal
        else PlainReporter()
    )


def show_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout as they are."""
    for line in lines:
        print(line)  # noqa: T201  this is the output


def show_next_steps(steps: Sequence[NextStep]) -> None:
    """Print what comes next."""
    for step in steps:
        print(f"next: {step.command}  ({step.reason})")  # noqa: T201  this is the output


def _stdout() -> Console:
    # Without a terminal rich assumes 80 columns and would break long values; a file has room.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def show_found(found: Iterable[tuple[str, bool]]) -> None:
    """Print what was looked for, and of each whether it is there."""
    console = _stdout()
    for name, is_there in found:
        mark = "[green]there[/]  " if is_there else "[bold red]MISSING[/]"
        console.print(f"{mark}  {escape(name)}", soft_wrap=True)


def show_verdict(document: dict[str, Any]) -> None:
    """Print a validation as tables."""
    console = _stdout()
    for table in document["tables"]:
        grid = Table(title=f"{table['name']} → {table['to']}", title_justify="left", expand=False)
        grid.add_column("check", no_wrap=True)
        grid.add_column("verdict", no_wrap=True)
        grid.add_column("what was found", overflow="fold")
        grid.add_column("time", justify="right", no_wrap=True)
        for check in table["checks"]:
            grid.add_row(
                check["name"],
                _MARKS.get(check["outcome"], f"[yellow]{check['outcome']}[/]"),
                escape(check["summary"]),
                format_seconds(check["seconds"]),
            )
        console.print(grid)
        _show_distribution(console, table, _sides(document))
        _show_differences(console, table, _sides(document))
        for note in table["notes"]:
            console.print(f"note: {escape(note)}")
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")


def _sides(document: dict[str, Any]) -> tuple[str, str]:
    """Return the owner, and the other side."""
    is_reverse = document["owner"] == "service"
    return ("service", "monolith") if is_reverse else ("monolith", "service")


def _show_distribution(console: Console, table: dict[str, Any], sides: tuple[str, str]) -> None:
    for check in table["checks"]:
        if check["name"] not in {"status distribution", "orders per user"} or not check["details"]:
            continue
        label = "status" if check["name"] == "status distribution" else "user"
        grid = Table(title=check["name"], title_justify="left", expand=False)
        grid.add_column(label)
        for side in sides:
            grid.add_column(side, justify="right")
        grid.add_column("difference", justify="right")
        for each in check["details"]:
            delta = each["target"] - each["source"]
            grid.add_row(
                "NULL" if each[label] is None else escape(repr(each[label])[1:-1]),
                f"{each['source']:,}",
                f"{each['target']:,}",
                f"[bold red]{delta:+,}[/]" if delta else "0",
            )
        console.print(grid)


def show_differences(document: dict[str, Any]) -> None:
    """Print only the rows in which a validation found the sides to differ."""
    console = _stdout()
    for table in document["tables"]:
        _show_differences(console, table, _sides(document))


def _show_differences(console: Console, table: dict[str, Any], sides: tuple[str, str]) -> None:
    """List rows below each other: a column's two values meet, however long they are."""
    if not table["differences"]:
        return
    shown, total = len(table["differences"]), table["differences_total"]
    noun = "row differs" if total == 1 else "rows differ"
    rest = f", {shown:,} shown" if shown < total else ""
    console.print(f"[bold]{escape(table['name'])}: {total:,} {noun}{rest}[/]")
    for each in table["differences"]:
        key = ", ".join(
            str(value) if len(each["key"]) == 1 else f"{name} {value}"
            for name, value in each["key"].items()
        )
        console.print(f"[bold red]{each['kind']}[/] {escape(key)}", soft_wrap=True)
        if each["kind"] != "changed":
            console.print(f"  only on the {sides[each['kind'] != 'missing']}")
            continue
        grid = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, values in each["columns"].items():
            grid.add_row(f"  {escape(name)}", sides[0], escape(_value(values["source"])))
            grid.add_row("", sides[1], escape(_value(values["target"])))
        console.print(grid)


def _value(text: str | None) -> str:
    # Quotes let a trailing space and the empty string be seen; NULL has none.
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def show_status(document: dict[str, Any]) -> None:
    """Print where a migration stands."""
    console = _stdout()
    if document["alarm"]:
        console.print(f"[bold red]{escape(document['alarm'])}[/]", soft_wrap=True)
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    head.add_row("migration", document["run"] or "none yet")
    head.add_row("phase", f"{document['phase']} ({escape(document['phase_meaning'])})")
    head.add_row("owner", document["owner"])
    for side in ("monolith", "service"):
        what = document[side]
        head.add_row(side, escape(f"{what['database']}, PostgreSQL {what['server_version']}"))
    if document["backlog"] is not None:
        _add_sync(head, document)
    head.add_row("last validation", escape(_describe_validation(document["last_validation"])))
    if any(share is not None for share in (document["traffic"] or {}).values()):
        head.add_row("traffic", describe_traffic(document["traffic"]))
    console.print(head)
    grid = Table(expand=False)
    grid.add_column("table")
    grid.add_column("copied", justify="right")
    grid.add_column("of", justify="right")
    grid.add_column("chunks", justify="right")
    grid.add_column("bytes", justify="right")
    for table in document["tables"]:
        is_known = table["chunks"] and table["chunks"] == table["chunks_copied"]
        mark = "" if is_known else "~"
        grid.add_row(
            escape(table["name"]),
            f"{table['copied_rows']:,}",
            f"{mark}{table['total_rows_estimate']:,}",
            f"{table['chunks_copied']}/{table['chunks']}",
            format_bytes(table["copied_bytes"]),
        )
    console.print(grid)
    for each in document["objects_off"]:
        console.print(f"off for now: {escape(each)}")
    for each in document["quarantine"][:MAX_QUARANTINED]:
        key = ", ".join(f"{name} = {text}" for name, text in each["key"].items())
        console.print(
            f"[bold yellow]in quarantine:[/] {escape(each['table'])} {escape(key)}: "
            f"{escape(each['reason'])}"
        )


def _noun(count: int) -> str:
    return "statement" if count == 1 else "statements"


def _add_sync(head: Table, document: dict[str, Any]) -> None:
    backlog, lag = document["backlog"], document["lag_seconds"]
    running = "sync is at work" if document["is_syncing"] else "sync is not running"
    changes = "1 change" if backlog == 1 else f"{backlog:,} changes"
    waiting = f"{changes}, the oldest {format_seconds(lag)} old" if backlog else "nothing waits"
    head.add_row("backlog", f"{waiting}; {running}")
    last = document["last_round"]
    if last is not None:
        head.add_row(
            "last round",
            f"{last['round']:,}, {format_seconds(last['age_seconds'])} ago: {last['changes']:,} "
            f"changes in {format_seconds(last['seconds'])}; "
            f"{last['rounds_per_second']:.1f} rounds a second",
        )
    refused = document["refused_writes"]
    fences = ", ".join(f"{side} {state}" for side, state in document["fences"].items())
    head.add_row("fences", fences + (f"; {refused:,} {_noun(refused)} refused" if refused else ""))
    for gap in document["capture_gaps"]:
        head.add_row("capture", f"[bold red]{escape(gap)}[/]")


def describe_traffic(shares: dict[str, int | None]) -> str:
    """Say how many users read from the service, by each database's word."""
    monolith, service = (shares[side] or 0 for side in ("monolith", "service"))
    if monolith == service:
        return f"{monolith} % of users read from the service"
    return f"the databases differ: the monolith says {monolith} %, the service {service} %"


def _describe_validation(last: dict[str, Any] | None) -> str:
    if last is None:
        return "none yet"
    how = f"checksums by {last['algorithm']}" if last["algorithm"] else "without checksums"
    void = f"; void: {last['void_because']}" if last["is_void"] else ""
    return f"{last['verdict']} ({how}), {format_seconds(last['age_seconds'])} ago{void}"


_SEVERITY_STYLES = {"stop": "bold red", "warn": "bold yellow", "note": "bold"}
_READABLE = 110


def show_preflight(document: dict[str, Any]) -> None:
    """Print findings, the gravest first, each kind once with all its places."""
    console = _stdout()
    for severity, meaning in SEVERITIES.items():
        kinds: dict[str, list[dict[str, Any]]] = {}
        for each in document["findings"]:
            if each["severity"] == severity:
                kinds.setdefault(each["key"], []).append(each)
        if kinds:
            head = Text(severity, style=_SEVERITY_STYLES[severity])
            _say(console, head.append(f"  {meaning}", style="dim"), 0)
        for key, found in kinds.items():
            _show_findings(console, key, found)
    reasons: dict[str, list[str]] = {}
    for each in document["unchecked"]:
        reasons.setdefault(each["reason"], []).append(each["key"])
    for reason, keys in reasons.items():
        named = ", ".join(dict.fromkeys(keys))
        _say(console, Text(f"not checked: {named} ({reason})", style="yellow"), 0)
    if document["skipped"]:
        _say(console, Text(f"skipped: {', '.join(document['skipped'])}"), 0)
    counts = document["counts"]
    said = f"{counts['stop']} to stop, {counts['warn']} to warn, {counts['note']} to note"
    _say(console, Text(said), 0)


def _show_findings(console: Console, key: str, found: Sequence[dict[str, Any]]) -> None:
    head = Text(key, style="bold").append(f": {found[0]['meaning']}", style="not bold")
    _say(console, head, 2)
    for each in found[:MAX_PLACES]:
        _say(console, Text(f"- {each['said']}"), 4, 2)
    if len(found) > MAX_PLACES:
        _say(console, Text(f"- and {len(found) - MAX_PLACES:,} more; --json tells them all"), 4)
    for todo in dict.fromkeys(each["todo"] for each in found[:MAX_PLACES]):
        _say(console, Text(f"→ {todo}", style="dim"), 4, 2)


def _say(console: Console, text: Text, indent: int, hang: int = 0) -> None:
    """Print a paragraph; on a wide terminal it ends where the eye still finds the next line."""
    width = min(console.width, _READABLE) - indent - hang
    for number, line in enumerate(text.wrap(console, width)):
        line.rstrip()
        margin = Text(" " * (indent + (hang if number else 0)))
        console.print(margin.append_text(line), soft_wrap=True)
