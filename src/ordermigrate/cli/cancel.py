"""`ordermigrate cancel`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import console, migration
from ordermigrate.cli import options


@click.command(name="cancel")
@click.option(
    "--drop-service-tables",
    "is_dropping",
    is_flag=True,
    help="Drop the family's tables on the service, with the rows that were copied.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    *,
    is_dropping: bool,
    is_json: bool,
    is_dry_run: bool,
) -> None:
    """Remove every trace of the migration from both sides.

    The monolith is then as it was. The service keeps its tables and the rows that are in them,
    with its own triggers and foreign keys as they were, unless it is told to drop them.

    \b
    Example:
      ordermigrate cancel --dry-run
    """
    config = options.load_config(config_path)
    done = options.run_verb(
        "cancel",
        log_format,
        lambda reporter: migration.cancel(
            config, reporter, is_dropping=is_dropping, is_dry_run=is_dry_run
        ),
    )
    outcome = "planned" if is_dry_run else "cancelled" if done.run else "nothing_to_cancel"
    document = options.make_document(
        "cancel",
        outcome,
        0,
        run=done.run,
        phase="new",
        owner="monolith",
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=[],
        steps_taken=list(done.steps),
    )
    if is_json:
        options.print_document(document)
        return
    head = "would:" if is_dry_run else outcome.replace("_", " ")
    console.show_lines([head, *(f"  {step}" for step in done.steps)])
