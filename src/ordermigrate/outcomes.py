"""What the verbs return: values for the command line to print, and for programs to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ordermigrate.findings import Finding, Severity, TableSize, Unchecked
from ordermigrate.ledger import LastRound, LastValidation
from ordermigrate.model import Direction, Identity, OwnTrigger, Side
from ordermigrate.phases import NextStep, Phase, next_steps
from ordermigrate.quarantine import Quarantined
from ordermigrate.readiness import Gate, Timing
from ordermigrate.verdicts import TableVerdict, Verdict


def find_owner(phase: Phase) -> str:
    """Return who owns the tables, where nothing but the phase is at hand."""
    return (Side.SERVICE if phase is Phase.CUT_OVER else Side.MONOLITH).value


def find_next_steps(
    phase: Phase, last: LastValidation | None, *, is_syncing: bool = False
) -> list[NextStep]:
    """Say what comes next, by the phase and the validation on record."""
    if last is None:
        return next_steps(phase, None, is_syncing=is_syncing)
    return next_steps(
        phase,
        last.verdict,
        is_void=last.is_void,
        has_checksums=last.algorithm is not None,
        is_syncing=is_syncing,
    )


@dataclass(frozen=True, slots=True)
class Preflight:
    """What `preflight` found; phase and owner are None where that could not be told."""

    run: str | None
    phase: Phase | None
    owner: str | None
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]
    skipped: tuple[str, ...]
    sizes: tuple[TableSize, ...]

    def count(self, severity: Severity) -> int:
        """Return how many findings are so grave."""
        return sum(each.severity is severity for each in self.findings)

    @property
    def outcome(self) -> str:
        """The gravest of it as one word: `stopped`, `warned` or `clear`."""
        if self.count(Severity.STOP):
            return "stopped"
        return "warned" if self.count(Severity.WARN) else "clear"


@dataclass(frozen=True, slots=True)
class Preparation:
    """What `prepare` did, or would do."""

    run: str | None
    phase: Phase
    last_validation: LastValidation | None
    steps: tuple[str, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """How much of one table is on the service."""

    name: str
    target: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What `copy` did, or would do."""

    run: str | None
    phase: Phase
    last_validation: LastValidation | None
    tables: tuple[CopiedTable, ...]
    seconds: float
    steps: tuple[str, ...]
    is_already_done: bool
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What `sync` did until it ended."""

    run: str | None
    phase: Phase
    last_validation: LastValidation | None
    rounds: int
    changes: int
    written: int
    deleted: int
    is_caught_up: bool
    seconds: float
    is_stopped: bool
    owner: str = Side.MONOLITH


@dataclass(frozen=True, slots=True)
class OwnerChange:
    """What a cutover or rollback did, or would do.

    `outcome` is done, already_done, finished or aborted (an earlier one that was cut off), fenced
    (a side that took writes without owning the tables), nothing_to_abort or planned.
    """

    run: str | None
    phase: Phase
    direction: Direction
    outcome: str
    owner: str
    pause_seconds: float | None
    gates: tuple[Gate, ...] = ()
    timings: tuple[Timing, ...] = ()
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    last_validation: LastValidation | None = None
    switched: Mapping[Side, Sequence[OwnTrigger]] = field(default_factory=dict)
    quarantined: int = 0
    is_syncing: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """What became of rows in quarantine that were tried again, or discarded."""

    run: str
    phase: Phase
    owner: str
    last_validation: LastValidation | None
    tried: int
    resolved: int
    left: tuple[Quarantined, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What `cancel` removed, or would remove."""

    run: str | None
    steps: tuple[str, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class Cleaning:
    """How far `cleanup` has come, or would come.

    `outcome` is `cleaned`, `renamed` (the drop has to wait until `drop_after`), `undone`,
    `nothing_to_do` or `planned`; `is_confirmed` says that no table's name has to be given for it.
    """

    outcome: str
    run: str | None = None
    phase: Phase = Phase.NEW
    steps: tuple[str, ...] = ()
    backup: str | None = None
    drop_after: str | None = None
    is_confirmed: bool = True


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """How far the service is behind, and what keeps others off it."""

    backlog: int
    lag_seconds: float
    is_syncing: bool
    last_round: LastRound | None
    fences: dict[str, str]
    refused_writes: int | None
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableStatus:
    """How far the copy of one table is."""

    name: str
    target: str
    total_rows_estimate: int
    copied_rows: int
    copied_bytes: int
    chunks: int
    chunks_copied: int


@dataclass(frozen=True, slots=True)
class Status:
    """Where a migration stands."""

    run: str | None
    phase: Phase
    phase_since: str | None
    owner: str
    monolith: Identity
    service: Identity
    tables: tuple[TableStatus, ...]
    objects_off: tuple[str, ...]
    last_validation: LastValidation | None
    sync: SyncStatus | None
    alarm: str | None
    epoch: int
    quarantine: tuple[Quarantined, ...]
    traffic: dict[str, int | None] | None


@dataclass(frozen=True, slots=True)
class TrafficResult:
    """The share of users who read from the service, by each database; None where none was set."""

    run: str
    phase: Phase
    owner: str
    last_validation: LastValidation | None
    monolith: int | None
    service: int | None
    reason: str | None
    changed_at: str | None
    is_syncing: bool
    notes: tuple[str, ...]
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Validation:
    """A verdict, and the migration that it is about."""

    run: str | None
    phase: Phase
    verdict: Verdict
    validation_id: int | None
    repaired_rows: int = 0
    is_syncing: bool = False
    owner: str = Side.MONOLITH


def describe_table(verdict: TableVerdict) -> dict[str, Any]:
    """Return a table's verdict as JSON has it (docs/reference.md)."""
    return {
        "name": verdict.name,
        "to": verdict.target,
        "rows": verdict.target_rows,
        "source_rows": verdict.source_rows,
        "target_rows": verdict.target_rows,
        "outcome": "equal" if verdict.is_equal else "different",
        "checks": [
            {
                "name": check.name,
                "outcome": check.outcome,
                "summary": check.summary,
                "details": list(check.details),
                "seconds": round(check.seconds, 3),
            }
            for check in verdict.checks
        ],
        "differences": [
            {
                "key": each.key,
                "kind": each.kind,
                "columns": {
                    name: {"source": values[0], "target": values[1]}
                    for name, values in each.columns.items()
                },
            }
            for each in verdict.differences
        ],
        "differences_total": verdict.differences_total,
        "notes": list(verdict.notes),
    }
