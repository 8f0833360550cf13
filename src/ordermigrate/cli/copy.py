"""`ordermigrate copy`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import console, meters, migration, outcomes, throttle
from ordermigrate.cli import options


@click.command(name="copy")
@click.option("--workers", type=int, metavar="N", help="Streams and index builds at a time.")
@click.option("--chunk-mib", type=int, metavar="N", help="Heap size of a chunk in MiB.")
@click.option(
    "--throttle",
    "throttled",
    multiple=True,
    metavar="SIGN=LIMIT",
    help="Wait while the monolith is busy: replica-lag=SECONDS, sessions=NUMBER, file=PATH.",
)
@click.option(
    "--restart",
    "is_restart",
    is_flag=True,
    help="Remove what earlier attempts copied, and begin again.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    workers: int | None,
    chunk_mib: int | None,
    throttled: tuple[str, ...],
    *,
    is_restart: bool,
    is_json: bool,
    is_dry_run: bool,
) -> None:
    """Copy every row of the family, build indexes, gather statistics.

    Writers go on: what they change is captured, and `sync` brings it. Killed or cut off at any
    point, the copy goes on where it stopped when it is run again.

    \b
    Example:
      ordermigrate copy --workers 4 --throttle replica-lag=2
    """
    signs = throttle.parse(throttled)
    config = options.load_config(config_path, workers=workers, chunk_mib=chunk_mib)
    done = options.run_verb(
        "copy",
        log_format,
        lambda reporter: migration.copy(
            config,
            reporter,
            signs=signs,
            is_restart=is_restart,
            is_dry_run=is_dry_run,
        ),
    )
    outcome = "planned" if is_dry_run else "already_copied" if done.is_already_done else "copied"
    steps = outcomes.find_next_steps(done.phase, done.last_validation)
    document = options.make_document(
        "copy",
        outcome,
        0,
        run=done.run,
        phase=done.phase.value,
        owner=outcomes.find_owner(done.phase),
        tables=[
            {"name": each.name, "to": each.target, "rows": each.rows, "bytes": each.bytes}
            for each in done.tables
        ],
        steps=steps,
        seconds=round(done.seconds, 3),
        steps_taken=list(done.steps),
    )
    if is_json:
        options.print_document(document)
        return
    if is_dry_run:
        console.show_lines(["would:", *(f"  {step}" for step in done.steps)])
    for each in done.tables:
        size = meters.format_bytes(each.bytes)
        said = (
            f"{outcome.replace('_', ' ')}: {each.name} to {each.target}, {each.rows:,} rows, {size}"
        )
        console.show_lines([said])
    if outcome == "copied":
        console.show_lines([f"took {meters.format_seconds(done.seconds)}"])
    console.show_next_steps(steps)
