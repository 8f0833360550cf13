"""`ordermigrate status`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ordermigrate import console, migration, outcomes, phases
from ordermigrate.cli import changing, options
from ordermigrate.ledger import LastRound
from ordermigrate.model import Identity


def _describe(identity: Identity) -> dict[str, object]:
    return {
        "database": identity.database,
        "server_version": identity.version_text,
        "encoding": identity.encoding,
    }


def _describe_round(last: LastRound) -> dict[str, object]:
    return {
        "round": last.round,
        "changes": last.logged_changes,
        "written": last.rows_written,
        "deleted": last.rows_deleted,
        "is_complete": last.is_complete,
        "seconds": round(last.seconds, 3),
        "age_seconds": round(last.age_seconds, 1),
        "rounds_per_second": round(last.rounds_per_second, 2),
    }


@click.command(name="status")
@options.shared
def command(config_path: Path | None, log_format: str, *, is_json: bool) -> None:
    """Tell where the migration stands: phase, rows copied, backlog, lag, proof, next steps.

    \b
    Example:
      ordermigrate status --json | jq .phase
    """
    config = options.load_config(config_path)
    found = options.run_verb(
        "status", log_format, lambda _: migration.status(config), is_quiet=True
    )
    last = found.last_validation
    sync = found.sync
    steps = outcomes.find_next_steps(
        found.phase, last, is_syncing=sync is not None and sync.is_syncing
    )
    document = options.make_document(
        "status",
        "ok",
        0,
        run=found.run,
        phase=found.phase.value,
        owner=found.owner,
        tables=[
            {**asdict(each), "rows": each.copied_rows, "to": each.target} for each in found.tables
        ],
        steps=steps,
        alarm=found.alarm,
        quarantine=[changing.describe_quarantined(each) for each in found.quarantine],
        epoch=found.epoch,
        phase_meaning=phases.MEANING[found.phase],
        phase_since=found.phase_since,
        copied_rows=sum(each.copied_rows for each in found.tables),
        total_rows_estimate=sum(each.total_rows_estimate for each in found.tables),
        monolith=_describe(found.monolith),
        service=_describe(found.service),
        last_validation=None
        if last is None
        else {
            "verdict": last.verdict,
            "algorithm": last.algorithm,
            "finished_at": last.finished_at.isoformat(),
            "age_seconds": round(last.age_seconds, 1),
            "seconds": round(last.seconds, 3),
            "is_void": last.is_void,
            "void_because": last.void_because,
        },
        objects_off=list(found.objects_off),
        backlog=sync.backlog if sync else None,
        lag_seconds=round(sync.lag_seconds, 3) if sync else None,
        is_syncing=sync.is_syncing if sync else None,
        last_round=_describe_round(sync.last_round) if sync and sync.last_round else None,
        fences=sync.fences if sync else None,
        refused_writes=sync.refused_writes if sync else None,
        capture_gaps=list(sync.gaps) if sync else [],
        traffic=found.traffic,
        # Known by the contract, and not measured by this version: null, never a guess.
        checklist=None,
    )
    if is_json:
        options.print_document(document)
        return
    console.show_status(document)
    console.show_next_steps(steps)
