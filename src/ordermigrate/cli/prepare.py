"""`ordermigrate prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import console, migration, outcomes
from ordermigrate.cli import options


@click.command(name="prepare")
@options.dry_run
@options.shared
def command(config_path: Path | None, log_format: str, *, is_json: bool, is_dry_run: bool) -> None:
    """Make both databases ready: service tables, ledger, fence on the service, capture of writes.

    `copy` does this too, if it has not been done. Run again, it mends what is missing: a trigger
    of ours that somebody has switched off, or one of the service's own that was switched on.

    \b
    Example:
      ordermigrate prepare --dry-run
    """
    config = options.load_config(config_path)
    done = options.run_verb(
        "prepare",
        log_format,
        lambda reporter: migration.prepare(config, reporter, is_dry_run=is_dry_run),
    )
    outcome = "planned" if is_dry_run else "prepared" if done.steps else "already_prepared"
    steps = outcomes.find_next_steps(done.phase, done.last_validation)
    document = options.make_document(
        "prepare",
        outcome,
        0,
        run=done.run,
        phase=done.phase.value,
        owner=outcomes.find_owner(done.phase),
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        steps_taken=list(done.steps),
    )
    if is_json:
        options.print_document(document)
        return
    if is_dry_run:
        console.show_lines(["would:", *(f"  {step}" for step in done.steps)])
    else:
        console.show_lines([f"{outcome.replace('_', ' ')}: migration {done.run}"])
    console.show_next_steps(steps)
