"""`ordermigrate schema`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ordermigrate import console, outcomes, schema
from ordermigrate.cli import options
from ordermigrate.config import Config
from ordermigrate.differences import Difference, Weight
from ordermigrate.errors import EXIT_DIFFERENT, UsageError
from ordermigrate.ledger import Run
from ordermigrate.objects import Looked
from ordermigrate.partitioning import INTERVALS, Partitioning
from ordermigrate.phases import NextStep

COMMAND = "schema"


@click.command(name="schema")
@click.option("--apply", "is_applying", is_flag=True, help="Create the service's tables by it.")
@click.option(
    "--diff", "is_comparing", is_flag=True, help="Compare both sides, and explain what differs."
)
@click.option(
    "--verify",
    "is_verifying",
    is_flag=True,
    help="Look on the service for each object of the family's list.",
)
@click.option(
    "--objects",
    "listed",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Another list for --verify.",
)
@click.option(
    "--partition-by",
    "columns",
    metavar="[TABLE:]COLUMN",
    multiple=True,
    help="Partition tables that have this column by it; may be given more than once.",
)
@click.option(
    "--interval",
    type=click.Choice(list(INTERVALS)),
    default="month",
    show_default=True,
    help="How much one partition holds.",
)
@options.dry_run
@options.shared
def command(
    config_path: Path | None,
    log_format: str,
    columns: tuple[str, ...],
    interval: str,
    listed: Path | None,
    *,
    is_applying: bool,
    is_comparing: bool,
    is_verifying: bool,
    is_json: bool,
    is_dry_run: bool,
) -> int:
    """Print the service's DDL, derived from the monolith's catalog; create, compare or verify it.

    Exits with 4 where --diff finds what stops a migration or may stop it, and where --verify
    misses an object.

    \b
    Example:
      ordermigrate schema --partition-by created_at --interval month
      ordermigrate schema --apply --dry-run
      ordermigrate schema --diff
    """
    _require_one(is_applying, is_comparing, is_verifying)
    if (columns and (is_comparing or is_verifying)) or (is_dry_run and not is_applying):
        raise UsageError(
            "--partition-by says how tables are made, --dry-run goes with --apply",
            todo="See `ordermigrate schema --help`",
        )
    config = options.load_config(config_path)
    wanted = [Partitioning.parse(each, interval) for each in columns]
    if is_comparing:
        found, run = options.run_verb(COMMAND, log_format, lambda _: schema.diff(config))
        return _show_differences(config, found, run, is_json=is_json)
    if is_verifying:
        looked, run = options.run_verb(COMMAND, log_format, lambda _: schema.verify(config, listed))
        return _show_objects(config, looked, run, is_json=is_json)
    if not is_applying:
        derived = options.run_verb(COMMAND, log_format, lambda _: schema.derive(config, wanted))
        script = derived.write()
        document = _make(config, "printed", 0, None, sql=script, notes=list(derived.notes))
        _show(document, [script.rstrip()], is_json=is_json)
        return 0
    done = options.run_verb(
        COMMAND, log_format, lambda _: schema.apply(config, wanted, is_dry_run=is_dry_run)
    )
    document = _make(
        config,
        done.outcome,
        0,
        done.run,
        sql=done.derived.write() if done.derived else None,
        notes=list(done.derived.notes) if done.derived else [],
        steps_taken=list(done.steps),
        steps=[]
        if is_dry_run
        else [NextStep("ordermigrate prepare --dry-run", "the service's tables are there")],
    )
    head = "would:" if is_dry_run else done.outcome.replace("_", " ")
    _show(document, [head, *(f"  {step}" for step in done.steps)], is_json=is_json)
    return 0


def _require_one(*chosen: bool) -> None:
    if sum(chosen) > 1:
        raise UsageError(
            "--apply, --diff and --verify are three things",
            wanted="One of them, or none to print the DDL",
            todo="Leave out the others",
        )


def _make(
    config: Config,
    outcome: str,
    exit_code: int,
    run: Run | None,
    *,
    steps: Sequence[NextStep] = (),
    **more: object,
) -> dict[str, Any]:
    """Return the document, with every key that any way of this command has."""
    own: dict[str, object] = {
        "sql": None,
        "steps_taken": [],
        "notes": [],
        "differences": [],
        "objects": [],
    }
    return options.make_document(
        COMMAND,
        outcome,
        exit_code,
        run=run.run if run else None,
        phase=run.phase.value if run else "new",
        owner=outcomes.find_owner(run.phase) if run else None,
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        **(own | more),
    )


def _show(document: dict[str, Any], lines: Sequence[str], *, is_json: bool) -> None:
    if is_json:
        options.print_document(document)
    else:
        click.echo("\n".join(lines))


def _show_differences(
    config: Config, found: Sequence[Difference], run: Run | None, *, is_json: bool
) -> int:
    is_in_the_way = any(each.weight is not Weight.HARMLESS for each in found)
    exit_code = EXIT_DIFFERENT if is_in_the_way else 0
    outcome = "different" if is_in_the_way else "harmless" if found else "equal"
    document = _make(config, outcome, exit_code, run, differences=[asdict(each) for each in found])
    lines: list[str] = []
    for each in found:
        what = " ".join(part for part in (each.kind, each.name) if part)
        where = f" of {each.table}" if each.table and each.kind != "table" else ""
        lines += [
            f"{each.weight.replace('_', ' ')}: {what}{where}",
            f"  monolith: {each.monolith or 'not there'}",
            f"  service:  {each.service or 'not there'}",
            f"  {each.meaning}",
        ]
    stopping = sum(each.weight is not Weight.HARMLESS for each in found)
    lines.append(f"{outcome.upper()}: {len(found)} found, of which {stopping} may stop something")
    _show(document, lines, is_json=is_json)
    return exit_code


def _show_objects(
    config: Config, looked: Sequence[Looked], run: Run | None, *, is_json: bool
) -> int:
    missing = [each for each in looked if not each.is_there]
    exit_code = EXIT_DIFFERENT if missing else 0
    outcome = "incomplete" if missing else "complete"
    document = _make(
        config,
        outcome,
        exit_code,
        run,
        objects=[{"object": str(each.object), "is_there": each.is_there} for each in looked],
    )
    if is_json:
        options.print_document(document)
        return exit_code
    console.show_found((str(each.object), each.is_there) for each in looked)
    console.show_lines(
        [f"{outcome.upper()}: {len(looked) - len(missing)} of {len(looked)} objects are there"]
    )
    return exit_code
