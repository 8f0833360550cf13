"""The ledger: what has been done, kept in the service's database. The only user of its tables.

What must be exactly once is recorded in the transaction that does it: a chunk with its rows, an
index with its definition's return. The rest is a report. Values come and go as plain types; a
password is never among them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ordermigrate import locks, phases, queries
from ordermigrate.control import Session
from ordermigrate.errors import Busy
from ordermigrate.model import Identity, Side, Table, TableName
from ordermigrate.phases import Phase

OPERATOR_LOCK_SECONDS = 5.0
_TABLES = (
    "create_run",
    "create_phase_change",
    "create_attempt",
    "create_chunk",
    "create_recorded_object",
    "create_voiding",
    "create_validation",
    "create_validation_difference",
    "create_subtraction",
    "create_structure",
    "create_round",
    "create_owner_change",
)
ROUNDS_KEPT = 2000


@dataclass(frozen=True, slots=True)
class Run:
    """The migration that a service's database belongs to."""

    run: str
    phase: Phase
    phase_since: datetime
    started_at: datetime
    program_version: str
    monolith: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of heap blocks `[first_block, end_block)`; the last of a leaf is open-ended."""

    chunk_id: int
    table_name: str
    leaf_name: str
    leaf_oid: int
    filenode: int | None
    first_block: int
    end_block: int | None
    is_copied: bool
    copied_rows: int
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class FirstAttempt:
    """What the source looked like when the copy began."""

    snapshot: str
    fingerprint: dict[str, Any]
    attempts: int


@dataclass(frozen=True, slots=True)
class Totals:
    """How far one table's copy is."""

    chunks: int
    chunks_copied: int
    copied_rows: int
    copied_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether every planned chunk is copied."""
        return self.chunks == self.chunks_copied


@dataclass(frozen=True, slots=True)
class RecordedObject:
    """Something of the service's schema that is off and has to come back."""

    table_name: str
    kind: str
    name: str
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """Which voidings and changes of phase there had been at a moment; later ones make void."""

    voidings: int
    phase_changes: int


@dataclass(frozen=True, slots=True)
class LastValidation:
    """The newest validation on record; it may have become void since, and then says why."""

    verdict: str
    algorithm: str | None
    finished_at: datetime
    age_seconds: float
    seconds: float
    tables: list[dict[str, Any]]
    void_because: str | None

    @property
    def is_void(self) -> bool:
        """Whether it proves nothing any more."""
        return self.void_because is not None


@dataclass(frozen=True, slots=True)
class LastRound:
    """The newest round of sync; times in seconds, `source_position` a WAL position."""

    round: int
    logged_changes: int
    rows_written: int
    rows_deleted: int
    is_complete: bool
    seconds: float
    source_position: str
    source: Side
    applied_at: datetime
    age_seconds: float
    rounds_per_second: float


def describe_identity(identity: Identity) -> str:
    """Return what the ledger keeps of a database's identity, as JSON."""
    return json.dumps(
        {
            "database": identity.database,
            "server_version": identity.version_text,
            "encoding": identity.encoding,
            "database_oid": identity.database_oid,
            "system_identifier": identity.system_identifier,
            "timeline": identity.timeline,
        }
    )


async def install(service: Session, run: str, version: str, monolith: Identity) -> None:
    """Create the ledger's tables and its run, in the caller's transaction; safe to repeat."""
    for block in _TABLES:
        await service.fetch_all("ledger", block)
    await service.fetch_all(
        "ledger",
        "insert_run",
        run,
        Phase.PREPARED.value,
        version,
        describe_identity(monolith),
        describe_identity(service.identity),
    )


async def read_run(service: Session) -> Run | None:
    """Return the run on record, or None where there is no ledger."""
    there = await service.fetch_one("ledger", "has_ledger")
    if not there.has_ledger:
        return None
    row = await service.fetch_one("ledger", "read_run")
    if row is None:
        return None
    return Run(
        row.run,
        Phase(row.phase),
        row.phase_since,
        row.started_at,
        row.program_version,
        row.monolith,
    )


async def read_phase_age(service: Session) -> float:
    """Return for how many seconds the run has been in its phase, by the service's clock."""
    return float((await service.fetch_one("ledger", "read_phase_age")).age_seconds)


async def take_operator_lock(service: Session) -> None:
    """Keep other commands that change this migration out, for as long as the session lives.

    A server takes a moment to notice that a killed command is gone, so its lock is waited for
    that long.

    Raises:
        Busy: Another one is at work.

    """
    end = time.monotonic() + OPERATOR_LOCK_SECONDS
    while not (await service.fetch_one("sessions", "try_operator_lock")).is_ours:
        if time.monotonic() >= end:
            raise Busy(
                "Another ordermigrate command is at work on this migration",
                wanted="One command at a time that changes it",
                todo="Wait for it to end; `ordermigrate status` shows how far it is",
            )
        await asyncio.sleep(0.25)


async def is_sync_at_work(service: Session) -> bool:
    """Whether a sync of this migration is at work at the moment."""
    return bool((await service.fetch_one("sessions", "is_sync_at_work")).is_at_work)


async def change_phase(service: Session, run: Run, new: Phase, command: str) -> Run:
    """Move the run to another phase and return it as it then is.

    Raises:
        Refused: `new` cannot follow.
        Busy: Someone else has moved it in the meantime.

    """
    phases.check_transition(run.phase, new)
    if new is run.phase:
        return run
    moved = await service.fetch_one(
        "ledger", "change_phase", run.run, run.phase.value, new.value, command, run.phase_since
    )
    if moved is None:
        raise Busy(
            f"Migration {run.run} has left phase {run.phase} while this command was at work",
            todo="See `ordermigrate status`, then run the command again if it is still wanted",
        )
    again = await read_run(service)
    if again is None:
        message = "a run that was just updated is not there"
        raise AssertionError(message)
    return again


async def open_attempt(
    service: Session, run: str, snapshot: str, fingerprint: dict[str, Any]
) -> int:
    """Record an attempt of the copy and return its number."""
    row = await service.fetch_one(
        "ledger", "insert_attempt", run, snapshot, json.dumps(fingerprint)
    )
    return int(row.attempt)


async def end_attempt(service: Session, attempt: int, outcome: str) -> None:
    """Record how an attempt ended."""
    await service.fetch_all("ledger", "end_attempt", attempt, outcome)


async def read_first_attempt(service: Session) -> FirstAttempt | None:
    """Return the attempt that began the copy, or None before it."""
    row = await service.fetch_one("ledger", "read_first_attempt")
    return row and FirstAttempt(row.snapshot, row.fingerprint, row.attempts)


async def read_last_structure(service: Session) -> dict[str, Any] | None:
    """Return what the source was at the latest attempt, or None before the first."""
    row = await service.fetch_one("ledger", "read_last_structure")
    return None if row is None else dict(row.fingerprint)


async def plan_chunks(
    service: Session,
    run: str,
    table: str,
    leaf: tuple[str, int, int | None],
    ranges: Iterable[tuple[int, int | None]],
) -> None:
    """Write down the chunks of one leaf, given as its name, oid and filenode."""
    listed = list(ranges)
    await service.fetch_all(
        "ledger",
        "plan_chunks",
        run,
        table,
        *leaf,
        [first for first, _ in listed],
        [end for _, end in listed],
    )


async def read_chunks(service: Session) -> list[Chunk]:
    """Return every chunk on record, in the order in which they are copied."""
    return [
        Chunk(
            row.chunk_id,
            row.table_name,
            row.leaf_name,
            row.leaf_oid,
            row.filenode,
            row.first_block,
            row.end_block,
            row.is_copied,
            row.copied_rows or 0,
            row.copied_bytes or 0,
        )
        for row in await service.fetch_all("ledger", "read_chunks")
    ]


async def read_totals(service: Session) -> dict[str, Totals]:
    """Return how far each table's copy is, by the source table's name."""
    return {
        row.table_name: Totals(row.chunks, row.chunks_copied, row.copied_rows, row.copied_bytes)
        for row in await service.fetch_all("ledger", "read_totals")
    }


async def is_empty(service: Session, table: TableName) -> bool:
    """Whether a target table has no rows."""
    return bool((await service.fetch_one("ledger", "is_empty", table=table.sql)).is_empty)


async def count_unknown_rows(service: Session, source: str, target: TableName) -> tuple[int, int]:
    """Return how many rows a target table has that no chunk brought, and how many are missing.

    A row knows the transaction that wrote it, and the ledger knows those of its chunks. Both
    numbers are zero exactly when the table holds what was copied, untouched. (A bulk load is
    young; transaction ids do not come round within it.)
    """
    async with service.transaction():
        await service.set_local("statement_timeout", "0")
        statement = queries.compose("ledger", "count_known_rows", table=target.sql)
        row = (await service.run_long(statement, source))[0]
    totals = (await read_totals(service)).get(source)
    removed = await service.fetch_one("ledger", "read_subtraction", source)
    brought = (totals.copied_rows if totals else 0) - (removed.rows_removed if removed else 0)
    return row.all_rows - row.known_rows, brought - row.known_rows


async def forget_leaf(service: Session, table: str, target: Table, leaf_oid: int) -> int:
    """Remove a leaf's rows from the target and its chunks from the ledger, together.

    The lock comes first: a backend whose client is gone may still be committing a chunk, and each
    statement after the lock sees what it did.

    Returns:
        The number of rows removed.

    """
    async with service.transaction():
        await service.set_local("statement_timeout", "0")
        await service.fetch_all("sides", "show_pass")
        await locks.lock_against_writers(service, [target.name])
        alone = await service.fetch_one("ledger", "is_alone", table, leaf_oid)
        copied = sum(
            chunk.copied_rows for chunk in await read_chunks(service) if chunk.leaf_oid == leaf_oid
        )
        subtracted = None
        if alone.is_alone:
            await _empty(service, target)
        else:
            statement = queries.compose("ledger", "delete_rows_of_leaf", table=target.name.sql)
            (gone,) = await service.run_long(statement, leaf_oid)
            subtracted = copied - gone.removed
        await service.fetch_all("ledger", "reduce_subtraction", table, subtracted)
        await service.fetch_all("ledger", "forget_leaf", leaf_oid)
    return copied


async def _empty(service: Session, target: Table) -> None:
    # TRUNCATE refuses a table that foreign keys point at, even when no row does.
    block = "delete_all_rows" if target.incoming_keys else "truncate_target"
    await service.run_long(queries.compose("ledger", block, table=target.name.sql))


async def forget_copy(service: Session, targets: Sequence[Table]) -> None:
    """Empty the targets and forget chunks and attempts, in the caller's transaction."""
    await service.fetch_all("sides", "show_pass")
    for target in targets:
        await _empty(service, target)
    for block in ("forget_chunks", "forget_attempts", "forget_subtractions", "forget_structures"):
        await service.fetch_all("ledger", block)


async def record_object(
    service: Session,
    table: str,
    kind: str,
    name: str,
    definition: dict[str, Any],
    weight: float = 0.0,
) -> None:
    """Write down a definition, in the transaction that drops it or switches it off."""
    await service.fetch_all(
        "ledger", "record_object", table, kind, name, json.dumps(definition), weight
    )


async def install_records(session: Session) -> None:
    """Create the table of recorded objects alone, in the caller's transaction.

    Definitions are kept where the objects are, so that what is taken off and its record commit
    together.
    """
    await session.fetch_all("ledger", "create_recorded_object")


async def has_records(session: Session) -> bool:
    """Whether definitions can be on record in this database."""
    return bool((await session.fetch_one("ledger", "has_records")).has_records)


async def read_objects(session: Session, *kinds: str, state: str = "off") -> list[RecordedObject]:
    """Return what is recorded in a database and still off, or `restored`; the heaviest first."""
    return [
        RecordedObject(row.table_name, row.kind, row.object_name, row.definition)
        for row in await session.fetch_all("ledger", "read_objects", list(kinds), state)
    ]


async def read_silenced(session: Session) -> list[RecordedObject]:
    """Return the foreign keys and triggers that are off in a database, if it has any on record."""
    if not await has_records(session):
        return []
    return await read_objects(session, "foreign_key", "trigger")


async def has_objects(service: Session) -> bool:
    """Whether there is a ledger here that could have objects on record."""
    return bool((await service.fetch_one("ledger", "has_ledger")).has_ledger)


async def claim_object(service: Session, recorded: RecordedObject) -> bool:
    """Keep others from bringing an object back in this transaction; False if it is back."""
    row = await service.fetch_one(
        "ledger", "claim_object", recorded.table_name, recorded.kind, recorded.name
    )
    return row is not None


async def mark_restored(service: Session, recorded: RecordedObject) -> None:
    """Record that an object is back, in the transaction that brought it."""
    await service.fetch_all(
        "ledger", "mark_restored", recorded.table_name, recorded.kind, recorded.name
    )


async def read_standing(service: Session) -> Standing:
    """Return what a validation has to know before it looks: whatever comes later makes it void."""
    return Standing(*await service.fetch_one("ledger", "read_standing"))


async def record_validation(
    service: Session,
    run: str,
    standing: Standing,
    verdict: str,
    algorithm: str | None,
    tables: list[dict[str, Any]],
    seconds: float,
) -> int:
    """Record a validation with its differences, in one transaction, and return its number.

    It is void from the beginning where something has happened since `standing`.
    """
    bare = [
        {key: value for key, value in table.items() if key != "differences"} for table in tables
    ]
    rows = [
        (table["name"], json.dumps(each["key"]), each["kind"], json.dumps(each["columns"]))
        for table in tables
        for each in table["differences"]
    ]
    async with service.transaction():
        found = await service.fetch_one(
            "ledger",
            "insert_validation",
            run,
            verdict,
            algorithm,
            json.dumps(bare),
            seconds,
            standing.voidings,
            standing.phase_changes,
        )
        if rows:
            await service.fetch_all(
                "ledger",
                "insert_differences",
                found.validation_id,
                *map(list, zip(*rows, strict=True)),
            )
    return int(found.validation_id)


async def read_last_validation(
    service: Session, number: int | None = None
) -> LastValidation | None:
    """Return the newest validation, or None where there was none; or the one of a number."""
    row = await service.fetch_one("ledger", "read_validation", number)
    return row and LastValidation(
        row.verdict,
        row.algorithm,
        row.finished_at,
        row.age_seconds,
        row.seconds,
        row.tables,
        row.void_because,
    )


async def is_reclaiming(service: Session) -> bool:
    """Whether the migration was begun by a rollback by time, of which no round has led back yet."""
    return bool((await service.fetch_one("ledger", "is_reclaiming")).is_reclaiming)


async def read_voidings(service: Session) -> list[str]:
    """Return what has made the newest validation void since it looked."""
    return [row.reason for row in await service.fetch_all("ledger", "read_voidings")]


async def void_validations(service: Session, reason: str) -> None:
    """Let no validation count any more that has looked before now, be it on record or not yet."""
    await service.fetch_all("ledger", "void_validations", reason)


async def count_snapshots(service: Session) -> int:
    """Return under how many snapshots the rows on record were copied."""
    return int((await service.fetch_one("ledger", "count_snapshots")).snapshots)


async def note_structure(service: Session, side: Side, fingerprint: dict[str, Any]) -> None:
    """Remember what a side is known to be."""
    await service.fetch_all("ledger", "note_structure", side.value, json.dumps(fingerprint))


async def read_structure(service: Session, side: Side) -> dict[str, Any] | None:
    """Return what a side is known to be, or None before the copy is complete."""
    row = await service.fetch_one("ledger", "read_structure", side.value)
    return row.fingerprint if row else None


async def note_owner(
    service: Session, epoch: int, owner: Side, pause_seconds: float | None, command: str
) -> None:
    """Record who owns the tables since an epoch; what is on record of it stays."""
    await service.fetch_all("ledger", "note_owner", epoch, owner.value, pause_seconds, command)


async def forget_rounds(service: Session, reason: str) -> None:
    """Forget all rounds on record, and with them what was proved."""
    async with service.transaction():
        await service.fetch_all("ledger", "forget_old_rounds", 2**62)
        await void_validations(service, reason)


async def read_last_round(service: Session) -> LastRound | None:
    """Return the newest round, or None before the first."""
    row = await service.fetch_one("ledger", "read_last_round")
    return row and LastRound(*row._replace(source=Side(row.source)))
