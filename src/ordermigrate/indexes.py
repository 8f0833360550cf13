"""What stands on the target's tables during a load, and its return afterwards.

Building an index after the load costs a fraction of keeping it through it. Each definition is in
the ledger, in the same transaction that drops it, before it is gone; it comes back under the same
name, with its tablespace, comment, replica identity and constraint. What something else depends
on (a foreign key from outside the family, a view) stays where it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from psycopg import sql

from ordermigrate import catalog, db, ledger, queries
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.ledger import RecordedObject
from ordermigrate.model import Column, Index, Side, Table, TableMap, TableName
from ordermigrate.progress import Analyzed, IndexBuilt, IndexesDropped, IndexStarted, Reporter
from ordermigrate.together import run_together

# Sorted runs that fit the processor's cache, merged, beat one large sort by a fifth of its CPU
# time. Large tables get more, so that the merge stays a single pass. The builders already keep the
# cores busy, so a build gets no parallel workers of its own.
SORT_KIB = 16 * 1024
MAX_SORT_KIB = 1024 * 1024
HEAP_PER_SORT = 200
PARALLEL_WORKERS = "0"

_TEXTUAL = frozenset({"text", "character varying", "bpchar", "name"})


async def silence(target: Session, maps: Iterable[TableMap]) -> list[str]:
    """Record and switch off what must not act on copied rows: triggers, the family's own keys.

    In the caller's transaction. Returns a sentence for each.
    """
    maps = list(maps)
    family = frozenset(each.target.name for each in maps)
    done: list[str] = []
    for each in maps:
        table = each.target
        for trigger in table.triggers:
            if trigger.enabled == "D":
                continue
            await ledger.record_object(
                target, str(table.name), "trigger", trigger.name, catalog.recorded(trigger)
            )
            await target.fetch_all(
                "indexes",
                "disable_trigger",
                table=table.name.sql,
                name=sql.Identifier(trigger.name),
            )
            done.append(
                f"trigger {trigger.name} on {table.name} is off until the {target.side} owns it"
            )
        for key in table.foreign_keys_by_scope(family)["within"]:
            await ledger.record_object(
                target, str(table.name), "foreign_key", key.name, catalog.recorded(key)
            )
            await target.fetch_all(
                "indexes", "drop_constraint", table=table.name.sql, name=sql.Identifier(key.name)
            )
            done.append(
                f"foreign key {key.name} on {table.name} is off until the {target.side} owns it"
            )
    return done


async def unsilence(
    target: Session, recorded: Sequence[RecordedObject], *, is_hasty: bool = False
) -> list[str]:
    """Bring back what `silence` switched off, as it was recorded, in the caller's transaction.

    A foreign key that rows on the target break comes back as NOT VALID. Returns a sentence for
    each thing that is not quite as it was.

    Args:
        target: A session in the database where it was recorded.
        recorded: The foreign keys and triggers, as `ledger.read_objects` returns them.
        is_hasty: Whether writers wait: then no row is looked at, and `validate_keys` is for later.

    """
    notes: list[str] = []
    for key in (each for each in recorded if each.kind == "foreign_key"):
        if is_hasty:
            await _restore_key_unseen(target, key)
        else:
            notes.extend(await _restore_key(target, key))
    for trigger in (each for each in recorded if each.kind == "trigger"):
        table = TableName(**trigger.definition["table"])
        block = {"A": "enable_trigger_always", "R": "enable_trigger_on_replica"}.get(
            str(trigger.definition["enabled"]), "enable_trigger"
        )
        there = await target.fetch_one(
            "indexes", "find_trigger", table.schema, table.name, trigger.name
        )
        if there is None:
            notes.append(f"trigger {trigger.name} on {table} is not there any more")
        else:
            await target.fetch_all(
                "indexes", block, table=table.sql, name=sql.Identifier(trigger.name)
            )
        await ledger.mark_restored(target, trigger)
    return notes


async def _restore_key(target: Session, recorded: RecordedObject) -> list[str]:
    table, notes = TableName.parse(recorded.table_name), list[str]()
    name = sql.Identifier(recorded.name)
    there = await target.fetch_one(
        "indexes", "find_constraint", table.schema, table.name, recorded.name
    )
    if there is None:
        definition = str(recorded.definition["definition"])
        lenient = f"{definition} NOT VALID"
        is_back = await _try_key(target, table, name, definition)
        if not is_back and await _try_key(target, table, name, lenient):
            notes.append(f"foreign key {recorded.name} on {table} is NOT VALID: rows break it")
        elif not is_back:
            notes.append(
                f"foreign key {recorded.name} on {table} cannot be brought back, for a table or "
                f"column of it is gone: {definition}"
            )
    await ledger.mark_restored(target, recorded)
    return notes


async def _restore_key_unseen(target: Session, recorded: RecordedObject) -> None:
    """Bring a foreign key back for new rows only, without a look at those that are there.

    A partitioned table cannot have one that is NOT VALID, but each of its parts can.
    """
    table, definition = TableName.parse(recorded.table_name), str(recorded.definition["definition"])
    definition = definition.removesuffix(" NOT VALID") + " NOT VALID"
    leaves = await target.fetch_all("indexes", "read_leaves", str(table))
    for each in leaves:
        leaf = TableName(each.schema_name, each.table_name)
        there = await target.fetch_one(
            "indexes", "find_constraint", leaf.schema, leaf.name, recorded.name
        )
        if there is None:
            text: dict[str, object] = {"definition": definition}
            await target.run(_add_constraint(leaf, sql.Identifier(recorded.name), text))
    await ledger.mark_restored(target, recorded)


async def validate_keys(target: Session) -> list[str]:
    """Have foreign keys that came back in haste look at the rows that are there.

    Blocks neither readers nor writers. Returns a sentence for each that rows break.
    """
    notes: list[str] = []
    for recorded in await ledger.read_objects(target, "foreign_key", state="restored"):
        if recorded.definition["is_validated"]:
            notes.extend(await _validate_key(target, recorded))
    return notes


async def _validate_key(target: Session, recorded: RecordedObject) -> list[str]:
    table, name = TableName.parse(recorded.table_name), sql.Identifier(recorded.name)
    try:
        for each in await target.fetch_all("indexes", "read_leaves", str(table)):
            leaf = TableName(each.schema_name, each.table_name)
            found = await target.fetch_one(
                "indexes", "find_constraint", leaf.schema, leaf.name, recorded.name
            )
            if found is not None and not found.is_validated:
                await _run_unhurried(
                    target,
                    queries.compose("indexes", "validate_constraint", table=leaf.sql, name=name),
                )
        there = await target.fetch_one(
            "indexes", "find_constraint", table.schema, table.name, recorded.name
        )
        if there is None:  # a partitioned table's own takes in those of its parts
            await _run_unhurried(target, _add_constraint(table, name, recorded.definition))
    except Refused as refused:
        return [
            f"foreign key {recorded.name} on {table} is NOT VALID: rows break it ({refused.fact})"
        ]
    return []


async def _run_unhurried(target: Session, statement: str) -> None:
    async with target.transaction():
        await target.set_local("statement_timeout", "0")
        await target.run_long(statement)


async def drop_for_load(target: Session, maps: Iterable[TableMap]) -> list[IndexesDropped]:
    """Record and drop what is cheaper to build after the load, in the caller's transaction."""
    dropped: list[IndexesDropped] = []
    for each in maps:
        table = each.target
        names: list[str] = []
        for index in table.indexes:
            if index.needed_by:
                continue
            await ledger.record_object(
                target,
                str(table.name),
                "index",
                index.name,
                {**catalog.recorded(index), "is_partitioned": table.is_partitioned},
                weight=estimate_weight(index, table),
            )
            await _drop(target, table.name, index)
            names.append(index.name)
        names += await _drop_checks(target, each)
        if names:
            dropped.append(IndexesDropped(str(table.name), tuple(names)))
    return dropped


async def _drop(target: Session, table: TableName, index: Index) -> None:
    if index.constraint:
        await target.fetch_all(
            "indexes", "drop_constraint", table=table.sql, name=sql.Identifier(index.constraint)
        )
    else:
        await target.fetch_all(
            "indexes", "drop_index", index=sql.Identifier(table.schema, index.name)
        )


async def _drop_checks(target: Session, table: TableMap) -> list[str]:
    """Drop CHECKs that the source has as NOT VALID: its old rows may break them."""
    lenient = {check.name for check in table.source.checks if not check.is_validated}
    names: list[str] = []
    for check in table.target.checks:
        if check.name not in lenient or check.is_inherited:
            continue
        definition = catalog.recorded(check)
        if "NOT VALID" not in check.definition:
            definition["definition"] = check.definition + " NOT VALID"
        await ledger.record_object(target, str(table.target.name), "check", check.name, definition)
        await target.fetch_all(
            "indexes",
            "drop_constraint",
            table=table.target.name.sql,
            name=sql.Identifier(check.name),
        )
        names.append(check.name)
    return names


def estimate_weight(index: Index, table: Table) -> float:
    """Guess how long a build takes against others: comparing text costs most.

    The longest builds go first, so that the workers end together.
    """
    columns = {column.name: column for column in table.columns}
    return sum(_weight(columns.get(name)) for name in index.columns) or 2.0


def _weight(column: Column | None) -> float:
    if column is None:
        return 3.0
    if column.base_type in _TEXTUAL:
        return 1.5 if column.collation in {'"C"', '"POSIX"'} else 3.0
    return 1.2 if column.base_type in {"uuid", "numeric", "jsonb"} else 1.0


async def restore(config: Config, side: Side, reporter: Reporter) -> None:
    """Build everything that was dropped for the load, several at a time; safe to repeat.

    Indexes are built side by side, each in a transaction of its own. Constraints are put in front
    of them one after the other: that takes an exclusive lock, for which two builders holding
    share locks would wait for each other.
    """
    book = await db.connect(config, side, "copy")
    try:
        waiting = deque(await ledger.read_objects(book, "index"))
        remaining = [len(waiting)]
        late: list[RecordedObject] = []

        async def work(number: int) -> None:
            session = await db.connect(config, side, f"copy: index builder {number}")
            try:
                while waiting:
                    recorded = waiting.popleft()
                    started = time.monotonic()
                    reporter.report(IndexStarted(recorded.table_name, recorded.name))
                    is_finished = await _build(session, recorded)
                    remaining[0] -= 1
                    reporter.report(
                        IndexBuilt(
                            recorded.table_name,
                            recorded.name,
                            time.monotonic() - started,
                            remaining[0],
                        )
                    )
                    if not is_finished:
                        late.append(recorded)
            finally:
                await session.close()

        workers = min(config.limits.workers, len(waiting))
        await run_together(*(work(number) for number in range(1, workers + 1)))
        for recorded in sorted(late, key=lambda each: (each.table_name, each.name)):
            await _attach(book, recorded)
        for recorded in await ledger.read_objects(book, "check"):
            await _restore_check(book, recorded)
    finally:
        await book.close()


async def _try_key(target: Session, table: TableName, name: sql.Identifier, text: str) -> bool:
    await target.run("SAVEPOINT restore_key")
    try:
        await target.run_long(_add_constraint(table, name, {"definition": text}))
    except Refused:
        await target.run("ROLLBACK TO SAVEPOINT restore_key")
        return False
    return True


def _is_attachable(definition: dict[str, object]) -> bool:
    return (
        definition["constraint_kind"] in {"p", "u"}
        and definition["method"] == "btree"
        and not definition["is_deferrable"]
        # PostgreSQL attaches no index to a partitioned table's constraint: it builds one.
        and not definition["is_partitioned"]
    )


async def _build(session: Session, recorded: RecordedObject) -> bool:
    """Build one index and return whether nothing more is to be done for it."""
    definition = recorded.definition
    table = TableName.parse(recorded.table_name)
    if definition["constraint"] and not _is_attachable(definition):
        return False
    async with session.transaction():
        await _prepare_build(session, table, str(definition["tablespace"]))
        # Another process of ours may be at it: two builds of one name end in an error.
        if not await ledger.claim_object(session, recorded):
            return True
        there = await session.fetch_one(
            "indexes", "find_index", table.schema, recorded.name, table.name
        )
        if there is None:
            await session.run_long(str(definition["definition"]))
        if definition["constraint"]:
            return False
        await _dress(session, table, recorded)
        await ledger.mark_restored(session, recorded)
    return True


async def _prepare_build(session: Session, table: TableName, tablespace: str) -> None:
    row = await session.fetch_one("indexes", "read_heap_size", str(table))
    sort_kib = min(max(SORT_KIB, row.heap_kib // HEAP_PER_SORT), MAX_SORT_KIB)
    await session.set_local("statement_timeout", "0")
    await session.set_local("maintenance_work_mem", f"{sort_kib}kB")
    await session.set_local("max_parallel_maintenance_workers", PARALLEL_WORKERS)
    await session.set_local("default_tablespace", tablespace)


async def _attach(session: Session, recorded: RecordedObject) -> None:
    definition = recorded.definition
    table = TableName.parse(recorded.table_name)
    name = sql.Identifier(str(definition["constraint"]))
    async with session.transaction():
        await _prepare_build(session, table, str(definition["tablespace"]))
        if not await ledger.claim_object(session, recorded):
            return
        there = await session.fetch_one(
            "indexes", "find_constraint", table.schema, table.name, definition["constraint"]
        )
        if there is None:
            built = await session.fetch_one(
                "indexes", "find_index", table.schema, recorded.name, table.name
            )
            if _is_attachable(definition) and built is not None:
                block = (
                    "attach_primary_key"
                    if definition["constraint_kind"] == "p"
                    else "attach_unique"
                )
                await session.fetch_all(
                    "indexes",
                    block,
                    table=table.sql,
                    name=name,
                    index=sql.Identifier(recorded.name),
                )
            else:
                if built is not None:
                    await session.fetch_all(
                        "indexes", "drop_index", index=sql.Identifier(table.schema, recorded.name)
                    )
                await session.run_long(_add_constraint(table, name, definition))
        if definition["constraint_comment"]:
            await session.fetch_all(
                "indexes",
                "comment_on_constraint",
                name=name,
                table=table.sql,
                comment=sql.Literal(definition["constraint_comment"]),
            )
        await _dress(session, table, recorded)
        await ledger.mark_restored(session, recorded)


def _add_constraint(table: TableName, name: sql.Identifier, definition: dict[str, object]) -> str:
    text = definition.get("constraint_definition") or definition["definition"]
    return queries.compose(
        "indexes",
        "add_constraint",
        table=table.sql,
        name=name,
        definition=sql.SQL(str(text)),
    )


async def _dress(session: Session, table: TableName, recorded: RecordedObject) -> None:
    """Give an index back what hung on it: comment, replica identity, cluster mark."""
    definition = recorded.definition
    index = sql.Identifier(recorded.name)
    if definition["comment"]:
        await session.fetch_all(
            "indexes",
            "comment_on_index",
            index=sql.Identifier(table.schema, recorded.name),
            comment=sql.Literal(definition["comment"]),
        )
    if definition["is_replica_identity"]:
        await session.fetch_all("indexes", "set_replica_identity", table=table.sql, index=index)
    if definition["is_clustered"]:
        await session.fetch_all("indexes", "set_clustered", table=table.sql, index=index)


async def _restore_check(session: Session, recorded: RecordedObject) -> None:
    table = TableName.parse(recorded.table_name)
    async with session.transaction():
        if not await ledger.claim_object(session, recorded):
            return
        there = await session.fetch_one(
            "indexes", "find_constraint", table.schema, table.name, recorded.name
        )
        if there is None:
            await session.run(
                _add_constraint(table, sql.Identifier(recorded.name), recorded.definition)
            )
        await ledger.mark_restored(session, recorded)


async def analyze(
    config: Config, side: Side, tables: Sequence[TableName], reporter: Reporter
) -> None:
    """Give the planner statistics of the target's tables, several tables at a time."""
    waiting = deque(tables)

    async def work() -> None:
        session = await db.connect(config, side, "copy: analyze")
        try:
            await session.run("SELECT set_config('statement_timeout', '0', false)")
            while waiting:
                table = waiting.popleft()
                started = time.monotonic()
                await session.run_long(queries.compose("indexes", "analyze", table=table.sql))
                reporter.report(Analyzed(str(table), time.monotonic() - started))
        finally:
            await session.close()

    await run_together(*(work() for _ in range(min(config.limits.workers, len(waiting)))))
