"""`ordermigrate rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import migration
from ordermigrate.cli import changing, options


@click.command(name="rollback")
@changing.max_pause
@click.option(
    "--abort",
    "is_aborting",
    is_flag=True,
    help="Undo a rollback that was cut off half-way: the service owns the tables again.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    *,
    max_pause_seconds: float | None,
    is_aborting: bool,
    is_json: bool,
    is_dry_run: bool,
) -> int:
    """Make the monolith the owner again, with all that the service has accepted.

    The same as a cutover, the other way round; it can be done back and forth.

    \b
    Example:
      ordermigrate rollback --dry-run && ordermigrate rollback
    """
    config = options.load_config(config_path)
    done = options.run_verb(
        "rollback",
        log_format,
        lambda reporter: migration.rollback(
            config,
            reporter,
            max_pause_seconds=max_pause_seconds,
            is_dry_run=is_dry_run,
            is_aborting=is_aborting,
        ),
    )
    return changing.show("rollback", config, done, is_json=is_json)
