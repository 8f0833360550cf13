"""`ordermigrate cutover`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import migration
from ordermigrate.cli import changing, options


@click.command(name="cutover")
@changing.max_pause
@click.option(
    "--abort",
    "is_aborting",
    is_flag=True,
    help="Undo a cutover that was cut off half-way: the monolith owns the tables again.",
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
    """Make the service the owner of the tables.

    Writers wait for a moment; what they have committed is all on the service before it takes the
    first write. If that moment grows longer than the pause allowed, all is undone (exit code 7),
    and no write has failed. A cutover that was cut off is finished by running it again.

    \b
    Example:
      ordermigrate cutover --dry-run && ordermigrate cutover --max-pause 1
    """
    config = options.load_config(config_path)
    done = options.run_verb(
        "cutover",
        log_format,
        lambda reporter: migration.cutover(
            config,
            reporter,
            max_pause_seconds=max_pause_seconds,
            is_dry_run=is_dry_run,
            is_aborting=is_aborting,
        ),
    )
    return changing.show("cutover", config, done, is_json=is_json)
