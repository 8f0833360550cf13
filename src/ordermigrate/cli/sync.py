"""`ordermigrate sync`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from ordermigrate import console, meters, migration, outcomes
from ordermigrate.cli import options


@click.command(name="sync")
@click.option(
    "--until-caught-up", is_flag=True, help="End once nothing is waiting in the change logs."
)
@click.option("--once", "is_once", is_flag=True, help="End after one round.")
@click.option(
    "--adopt",
    "is_adopting",
    is_flag=True,
    help="Go on although tables have changed, or a database was restored; what was proved is void.",
)
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    *,
    until_caught_up: bool,
    is_once: bool,
    is_adopting: bool,
    is_json: bool,
) -> None:
    """Apply what the monolith writes to the service, round after round, until stopped.

    SIGTERM ends it after the round that is under way, with exit code 0. A second one stands by
    until the first is gone. Lost connections are opened anew.

    \b
    Example:
      ordermigrate sync --until-caught-up && ordermigrate validate --checksums
    """
    config = options.load_config(config_path)
    stop = asyncio.Event()
    done = options.run_verb(
        "sync",
        log_format,
        lambda reporter: migration.sync(
            config,
            reporter,
            stop,
            is_once=is_once,
            until_caught_up=until_caught_up,
            is_adopting=is_adopting,
        ),
        on_terminate=stop.set,
    )
    outcome = "caught_up" if done.is_caught_up else "stopped" if done.is_stopped else "behind"
    steps = outcomes.find_next_steps(done.phase, done.last_validation)
    document = options.make_document(
        "sync",
        outcome,
        0,
        run=done.run,
        phase=done.phase.value,
        owner=done.owner,
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        rounds=done.rounds,
        changes=done.changes,
        written=done.written,
        deleted=done.deleted,
        seconds=round(done.seconds, 3),
    )
    if is_json:
        options.print_document(document)
        return
    noun = "round" if done.rounds == 1 else "rounds"
    line = (
        f"{outcome.replace('_', ' ')}: {done.changes:,} changes in {done.rounds:,} {noun}, "
        f"{done.written:,} rows written, {done.deleted:,} deleted, "
        f"in {meters.format_seconds(done.seconds)}"
    )
    console.show_lines([line])
    console.show_next_steps(steps)
