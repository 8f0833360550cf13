"""What `cutover` and `rollback` share: options, and how what was done is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ordermigrate import console, outcomes
from ordermigrate.cli import options
from ordermigrate.config import Config
from ordermigrate.errors import EXIT_OK, EXIT_QUARANTINED
from ordermigrate.outcomes import OwnerChange, Retry
from ordermigrate.phases import NextStep
from ordermigrate.quarantine import Quarantined

MAX_LISTED = 20
_F = TypeVar("_F", bound=Callable[..., Any])


def max_pause(function: _F) -> _F:
    """Add --max-pause."""
    return click.option(
        "--max-pause",
        "max_pause_seconds",
        type=click.FloatRange(min=0.01),
        metavar="SECONDS",
        help="For how long writers may have to wait; beyond it all is undone.  "
        "[default: limits.max_pause_seconds]",
    )(function)


def describe_quarantined(each: Quarantined) -> dict[str, Any]:
    """Return a row in quarantine as JSON has it."""
    return {
        "table": each.table,
        "key": dict(each.key),
        "kind": each.kind,
        "reason": each.reason,
        "constraint": each.constraint_name,
        "row": None if each.row is None else dict(each.row),
        "quarantined_at": each.quarantined_at.isoformat(),
        "tries": each.tries,
    }


def show_retry(config: Config, done: Retry, *, is_json: bool) -> int:
    """Print what became of rows in quarantine, and return the exit code."""
    code = EXIT_QUARANTINED if done.left else EXIT_OK
    if done.is_dry_run:
        outcome = "planned"
    elif done.left:
        outcome = "quarantined"
    else:
        outcome = "resolved" if done.tried else "nothing_to_retry"
    steps = outcomes.find_next_steps(done.phase, done.last_validation)
    document = options.make_document(
        "rollback",
        outcome,
        code,
        run=done.run,
        phase=done.phase.value,
        owner=done.owner,
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        pause_seconds=None,
        gates=[],
        timings=[],
        steps_taken=[],
        notes=[f"{each.table}: {each.reason}" for each in done.left[:MAX_LISTED]],
        quarantined_rows=len(done.left),
    )
    if is_json:
        options.print_document(document)
        return code
    head = (
        f"{outcome.replace('_', ' ')}: {done.tried:,} tried, {done.resolved:,} resolved, "
        f"{len(done.left):,} in quarantine"
    )
    listed = (f"  {describe_key(each)}: {each.reason}" for each in done.left[:MAX_LISTED])
    console.show_lines([head, *listed])
    console.show_next_steps(steps)
    return code


def describe_key(each: Quarantined) -> str:
    """Name a row in quarantine."""
    key = ", ".join(f"{name} = {text}" for name, text in each.key.items())
    return f"{each.table} {key} ({each.kind}, tried {each.tries} times)"


def show(command: str, config: Config, done: OwnerChange, *, is_json: bool) -> int:
    """Print what was done, or would be, and return the exit code."""
    code = EXIT_QUARANTINED if done.quarantined else EXIT_OK
    steps = _find_next_steps(command, done)
    document = options.make_document(
        command,
        done.outcome,
        code,
        run=done.run,
        phase=done.phase.value,
        owner=done.owner,
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        pause_seconds=None if done.pause_seconds is None else round(done.pause_seconds, 4),
        gates=[{"name": g.name, "is_open": g.is_open, "said": g.said} for g in done.gates],
        timings=[{"name": t.name, "seconds": round(t.seconds, 5)} for t in done.timings],
        steps_taken=list(done.steps),
        notes=list(done.notes),
        quarantined_rows=done.quarantined,
    )
    if is_json:
        options.print_document(document)
        return code
    lines: list[str] = []
    if done.outcome == "planned":
        lines += ["would:", *(f"  {step}" for step in done.steps), "gates:"]
        lines += [f"  {'open' if g.is_open else 'SHUT':<4}  {g.name}: {g.said}" for g in done.gates]
        lines += ["measured, without stopping anyone:"]
        lines += [f"  {t.seconds * 1000:8.1f} ms  {t.name}" for t in done.timings]
    else:
        said = f"{done.outcome.replace('_', ' ')}: the {done.owner} owns the tables"
        if done.pause_seconds is not None:
            said += f"; for {done.pause_seconds * 1000:.0f} ms at most no side took a write"
        lines.append(said)
    lines += [f"note: {note}" for note in done.notes]
    console.show_lines(lines)
    console.show_next_steps(steps)
    return code


def _find_next_steps(command: str, done: OwnerChange) -> list[NextStep]:
    """Say what comes next: after a look at open gates, what was looked at."""
    if done.outcome == "planned" and done.gates and all(gate.is_open for gate in done.gates):
        return [NextStep(f"ordermigrate {command}", "every gate is open")]
    return outcomes.find_next_steps(done.phase, done.last_validation, is_syncing=done.is_syncing)
