"""`ordermigrate cleanup`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ordermigrate import console, migration
from ordermigrate.cli import options
from ordermigrate.outcomes import Cleaning


@click.command(name="cleanup")
@click.option(
    "--backup",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the backup of the monolith's tables goes.  [default: ./ordermigrate-backup]",
)
@click.option(
    "--confirm",
    "confirmed",
    metavar="TABLE",
    help="The first table's name: yes, the monolith's tables may go.  [default: ask]",
)
@click.option(
    "--undo",
    "is_undoing",
    is_flag=True,
    help="Give tables that are renamed and not yet dropped their names back.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    directory: Path | None,
    confirmed: str | None,
    *,
    is_undoing: bool,
    is_json: bool,
    is_dry_run: bool,
) -> None:
    """End the migration: the monolith's tables go, and every trace of it on both sides.

    They are backed up, renamed, and dropped by a later run, once cleanup_wait_hours are over.

    \b
    Example:
      ordermigrate cleanup --dry-run
      ordermigrate cleanup --backup /srv/backups --confirm public.orders
    """
    config = options.load_config(config_path)

    def run(*, is_dry_run: bool, confirmed: str | None) -> Cleaning:
        return options.run_verb(
            "cleanup",
            log_format,
            lambda reporter: migration.cleanup(
                config,
                reporter,
                directory=directory,
                confirmed=confirmed,
                is_undoing=is_undoing,
                is_dry_run=is_dry_run,
            ),
        )

    if not (is_dry_run or is_undoing or confirmed) and sys.stdin.isatty():
        plan = run(is_dry_run=True, confirmed=None)
        if not plan.is_confirmed:
            click.echo("\n".join(["This will:", *(f"  {step}" for step in plan.steps)]), err=True)
            confirmed = click.prompt(
                f"To go on, type the first table's name ({config.tables[0].name})", err=True
            )
    done = run(is_dry_run=is_dry_run, confirmed=confirmed)
    document = options.make_document(
        "cleanup",
        done.outcome,
        0,
        run=done.run,
        phase=done.phase.value,
        owner=None if done.run is None else "service",
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=[],
        steps_taken=list(done.steps),
        backup=done.backup,
        drop_after=done.drop_after,
    )
    if is_json:
        options.print_document(document)
        return
    head = "would:" if is_dry_run else done.outcome.replace("_", " ")
    console.show_lines([head, *(f"  {step}" for step in done.steps), *_tell_rest(done)])


def _tell_rest(done: Cleaning) -> list[str]:
    lines = [f"backup: {done.backup}"] if done.backup else []
    if done.outcome == "renamed":
        lines.append(
            f"The monolith's tables may be dropped from {done.drop_after} on, by the same command; "
            "until then `ordermigrate cleanup --undo` gives them their names back."
        )
    return lines
