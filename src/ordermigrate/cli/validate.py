"""`ordermigrate validate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ordermigrate import console, meters, migration, outcomes, phases
from ordermigrate.cli import options
from ordermigrate.digest import Algorithm
from ordermigrate.errors import EXIT_DIFFERENT


@click.command(name="validate")
@click.option(
    "--checksums",
    "has_checksums",
    is_flag=True,
    help="Compare every row, and name those that differ.",
)
@click.option(
    "--algorithm",
    type=click.Choice([each.value for each in Algorithm]),
    help="How rows are hashed; implies --checksums.  [default: md5]",
)
@click.option(
    "--max-differences",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many differing rows to name; all are counted.",
)
@click.option(
    "--repair",
    "is_repairing",
    is_flag=True,
    help="Apply the monolith's rows where they differ, and compare again; implies --checksums.",
)
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    algorithm: str | None,
    max_differences: int,
    *,
    has_checksums: bool,
    is_repairing: bool,
    is_json: bool,
) -> int:
    """Compare both sides: counts, status distribution, users, latest orders, orphans, every row.

    Writers and `sync` go on meanwhile: both sides are read as of one moment.
    Exits with 0 when they are equal, with 4 when they differ; a side that cannot be read is
    neither.

    \b
    Example:
      ordermigrate validate --checksums --json | jq .outcome
    """
    config = options.load_config(config_path)
    chosen = Algorithm(algorithm) if algorithm else Algorithm.MD5 if has_checksums else None
    done = options.run_verb(
        "validate",
        log_format,
        lambda reporter: migration.validate(
            config,
            reporter,
            algorithm=chosen,
            max_differences=max_differences,
            is_repairing=is_repairing,
        ),
    )
    verdict = done.verdict
    outcome, exit_code = ("equal", 0) if verdict.is_equal else ("different", EXIT_DIFFERENT)
    steps = phases.next_steps(
        done.phase,
        outcome,
        has_checksums=verdict.algorithm is not None,
        is_syncing=done.is_syncing,
    )
    document = options.make_document(
        "validate",
        outcome,
        exit_code,
        run=done.run,
        phase=done.phase.value,
        owner=done.owner,
        tables=[outcomes.describe_table(each) for each in verdict.tables],
        steps=steps,
        algorithm=verdict.algorithm,
        seconds=round(verdict.seconds, 3),
        validation=done.validation_id,
        repaired_rows=done.repaired_rows,
        notes=list(verdict.notes),
    )
    if is_json:
        options.print_document(document)
        return exit_code
    console.show_verdict(document)
    how = f"every row compared by {verdict.algorithm}" if verdict.algorithm else "no checksums"
    recorded = "" if done.validation_id else "; not recorded: there is no ledger yet"
    rows = sum(each.source_rows for each in verdict.tables)
    line = f"{outcome.upper()}: {rows:,} rows of the {done.owner}, {how}, in "
    console.show_lines([line + meters.format_seconds(verdict.seconds) + recorded])
    if done.repaired_rows:
        noun = "row" if done.repaired_rows == 1 else "rows"
        console.show_lines([f"repaired: {done.repaired_rows:,} {noun}, and then compared again"])
    console.show_next_steps(steps)
    sys.stdout.flush()
    return exit_code
