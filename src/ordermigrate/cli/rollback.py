"""`ordermigrate rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import migration
from ordermigrate.cli import changing, options
from ordermigrate.config import Config


@click.command(name="rollback")
@changing.max_pause
@click.option(
    "--abort",
    "is_aborting",
    is_flag=True,
    help="Undo a rollback that was cut off half-way: the service owns the tables again.",
)
@click.option(
    "--since",
    metavar="TIMESTAMP",
    help="Where no log says what the service has written: take rows created or changed since then.",
)
@click.option(
    "--accept-loss",
    "accepts_loss",
    is_flag=True,
    help="Make the monolith the owner although the service, and what it wrote last, is lost.",
)
@click.option(
    "--retry-quarantine",
    "is_retrying",
    is_flag=True,
    help="Try rows again that the monolith has refused; changes no owner.",
)
@click.option(
    "--discard-quarantine",
    "is_discarding",
    is_flag=True,
    help="Forget what it has refused, once it owns the tables: the service gets its rows.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    *,
    max_pause_seconds: float | None,
    is_aborting: bool,
    since: str | None,
    accepts_loss: bool,
    is_retrying: bool,
    is_discarding: bool,
    is_json: bool,
    is_dry_run: bool,
) -> int:
    """Make the monolith the owner again, with all that the service has accepted.

    The same as a cutover, the other way round; it can be done back and forth. With --since it needs
    no log of the service's writes: it takes the rows that say they are new, compares all, and only
    then changes the owner.

    \b
    Example:
      ordermigrate rollback --dry-run && ordermigrate rollback
    """
    config = options.load_config(config_path)
    if is_retrying or is_discarding:
        return _retry(
            config, log_format, is_discarding=is_discarding, is_json=is_json, is_dry_run=is_dry_run
        )
    done = options.run_verb(
        "rollback",
        log_format,
        lambda reporter: migration.rollback(
            config,
            reporter,
            since=since,
            max_pause_seconds=max_pause_seconds,
            is_dry_run=is_dry_run,
            is_aborting=is_aborting,
            accepts_loss=accepts_loss,
        ),
    )
    return changing.show("rollback", config, done, is_json=is_json)


def _retry(
    config: Config, log_format: str, *, is_discarding: bool, is_json: bool, is_dry_run: bool
) -> int:
    done = options.run_verb(
        "rollback",
        log_format,
        lambda reporter: migration.retry_quarantine(
            config, reporter, is_discarding=is_discarding, is_dry_run=is_dry_run
        ),
    )
    return changing.show_retry(config, done, is_json=is_json)
