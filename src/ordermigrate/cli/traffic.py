"""`ordermigrate traffic`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import console, migration, outcomes
from ordermigrate.cli import options
from ordermigrate.phases import NextStep


@click.command(name="traffic")
@click.argument("percentage", type=int, required=False, metavar="[0|5|10|25|50|100]")
@options.shared
def command(
    config_path: Path | None, log_format: str, percentage: int | None, *, is_json: bool
) -> None:
    """Show or set the share of users whose reads go to the service: 0, 5, 10, 25, 50 or 100 %.

    Applications ask either database by `ordermigrate.reads_from_service(user_key)`, or by the
    client in `ordermigrate.reads`. A user who is among the 10 % is among the 25 % too. More is
    refused while the service is not in step and proved equal; less never is. Writes are not led.

    \b
    Example:
      ordermigrate traffic 5
    """
    config = options.load_config(config_path)
    found = options.run_verb(
        "traffic",
        log_format,
        lambda reporter: migration.show_or_set_traffic(config, reporter, percentage),
        is_quiet=True,
    )
    outcome = "shown" if percentage is None else "set" if found.is_changed else "unchanged"
    shares = {"monolith": found.monolith, "service": found.service}
    steps = outcomes.find_next_steps(
        found.phase, found.last_validation, is_syncing=found.is_syncing
    )
    if (found.monolith or 0) != (found.service or 0):
        least = min(found.monolith or 0, found.service or 0)
        step = NextStep(f"ordermigrate traffic {least}", "the two databases do not say the same")
        steps = [step, *steps]
    document = options.make_document(
        "traffic",
        outcome,
        0,
        run=found.run,
        phase=found.phase.value,
        owner=found.owner,
        tables=[{"name": str(each.name), "to": str(each.target)} for each in config.tables],
        steps=steps,
        percentage=found.monolith or 0,
        traffic=shares,
        reason=found.reason,
        changed_at=found.changed_at,
        is_syncing=found.is_syncing,
        notes=list(found.notes),
    )
    if is_json:
        options.print_document(document)
        return
    since = [f"  {found.reason}, {found.changed_at}"] if found.reason else []
    notes = [f"note: {note}" for note in found.notes]
    console.show_lines([console.describe_traffic(shares), *since, *notes])
    console.show_next_steps(steps)
