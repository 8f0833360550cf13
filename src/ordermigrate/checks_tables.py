"""Checks of the family itself: rights, keys, types, columns, sequences, and what its tables are.

The finders are plain functions of what a catalog says; the gates of the changing commands call the
same ones, so that nothing is refused later that was not told before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from psycopg import sql

from ordermigrate import catalog, ledger
from ordermigrate.catalog import Presence
from ordermigrate.config import TableConfig
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.findings import Spot, name_some
from ordermigrate.model import Side, Table, TableMap, quote_name
from ordermigrate.survey import Survey

_ENUMERATED = 8


# ------------------------------------------------------------------------------------- presence


def see_absence(key: str) -> Callable[[Survey, Side], Awaitable[list[Spot]]]:
    """Return a check that tells, under one key, what keeps tables from being read."""

    async def see(survey: Survey, side: Side) -> list[Spot]:
        presences = await survey.presences(side)
        if side is Side.SERVICE and survey.config.family is not None:
            # `prepare` creates them, all or none.
            presences = [each for each in presences if each.oid is not None]
        faults = await catalog.find_faults(survey.session(side), presences)
        return [Spot(each.fact, each.todo) for each in faults if each.finding == key]

    return see


async def see_parts(survey: Survey, side: Side) -> list[Spot]:
    """Find parts of tables that cannot be read."""
    try:
        await survey.tables(side)
    except Refused as refused:
        if refused.finding != "parts-unreadable":
            raise
        return [Spot(said, refused.todo) for said in refused.findings or (refused.fact,)]
    return []


# --------------------------------------------------------------------------------------- rights


def find_hidden_rows(side: Side, presences: Iterable[Presence]) -> list[Spot]:
    """Find tables of which row level security would hide rows from us."""
    return [
        Spot(
            f"row level security of {each.name} on the {side} applies to our role and would hide "
            "rows from us",
            "connect as the table's owner, or as a role with BYPASSRLS",
        )
        for each in presences
        if each.hides_rows
    ]


def find_write_rights(side: Side, presences: Iterable[Presence]) -> list[Spot]:
    """Find tables of the service that we may not insert into."""
    return [
        Spot(f"we may not insert into {each.name} on the {side}")
        for each in presences
        if each.oid is not None and not each.can_insert
    ]


def find_strange_owners(side: Side, presences: Iterable[Presence]) -> list[Spot]:
    """Find tables that are not ours, and say what takes their owner."""
    if side is Side.SERVICE:
        why = "its indexes cannot be dropped for the load and built after it"
    else:
        why = "capturing its writes takes triggers that its owner alone can make fire always"
    return [
        Spot(
            f"{each.name} on the {side} belongs to another role than ours: {why}",
            "connect as its owner, or GRANT the owner's role to ours",
        )
        for each in presences
        if each.oid is not None and not each.is_owned
    ]


async def find_no_schema(session: Session) -> list[Spot]:
    """Find a database in which we may not make our schema."""
    there = await session.fetch_one("sides", "has_schema")
    if there.is_there or there.can_create:
        return []
    return [
        Spot(
            f"we may not create the schema ordermigrate in the {session.side}'s database",
            f"GRANT CREATE ON DATABASE {quote_name(session.identity.database)} TO our role",
        )
    ]


def see_presences(
    find: Callable[[Side, Iterable[Presence]], list[Spot]],
) -> Callable[[Survey, Side], Awaitable[list[Spot]]]:
    """Return a check of what is told of every table at once."""

    async def see(survey: Survey, side: Side) -> list[Spot]:
        return find(side, await survey.presences(side))

    return see


async def see_schema_right(survey: Survey, side: Side) -> list[Spot]:
    """Find a database in which we may not make our schema."""
    return await find_no_schema(survey.session(side))


async def see_policies(survey: Survey, side: Side) -> list[Spot]:
    """Find row level security."""
    rows = await survey.fetch_parts(side, "checks_tables", "find_policies")
    return [
        Spot(
            f"{row.table_name} on the {side} has row level security "
            f"({'on' if row.is_on else 'off'}), policies: {name_some(row.policies) or 'none'}"
        )
        for row in rows
    ]


# ------------------------------------------------------------------------------- tables and columns


def see_misfits(key: str) -> Callable[[Survey, Side], Awaitable[list[Spot]]]:
    """Return a check that tells, under one key, what does not fit between the two sides."""

    async def see(survey: Survey, _: Side) -> list[Spot]:
        _maps, misfits = await survey.fit()
        return [Spot(each.said) for each in misfits if each.finding == key]

    return see


async def see_configured_columns(survey: Survey, _: Side) -> list[Spot]:
    """Find columns that the configuration names and that are not there."""
    try:
        await survey.fit()
    except UsageError as wrong:
        return [Spot(wrong.fact, wrong.todo)]
    return []


async def find_faulty_sql(monolith: Session, configured: Sequence[TableConfig]) -> list[Spot]:
    """Find SQL of the configuration that the monolith does not understand."""
    spots: list[Spot] = []
    for table in configured:
        alias = sql.Identifier(table.name.name)
        origin = sql.SQL("FROM {} AS {}").format(table.name.sql, alias).as_string(None)
        written = [("where", table.where, f"SELECT true {origin} WHERE ({table.where}\n)")]
        written.extend(
            (f"columns.{quote_name(name)}", rule.sql, f"SELECT ({rule.sql}\n) {origin}")
            for name, rule in table.columns.items()
        )
        for key, text, query in written:
            if said := await monolith.find_fault(query):
                spots.append(Spot(f"{key} of {table.name}, {text!r}: {said}"))
    return spots


async def see_configured_sql(survey: Survey, side: Side) -> list[Spot]:
    """Find SQL of the configuration that the monolith does not understand."""
    there = await survey.tables(side)
    written = [
        each
        for each in survey.config.tables
        # A condition that is just true needs no server to be understood.
        if each.name in there and (each.columns or each.where.strip().lower() != "true")
    ]
    return await find_faulty_sql(survey.session(side), written)


def find_unlogged(side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Find tables that a crash would empty."""
    return [
        Spot(
            f"{leaf.name} on the {side} is UNLOGGED: a crash would empty it"
            + (", and leave no trace of that in its change log" if side is Side.MONOLITH else ""),
            f"ALTER TABLE {leaf.name} SET LOGGED",
        )
        for table in tables
        for leaf in table.leaves
        if leaf.is_unlogged
    ]


def find_invalid_indexes(side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Find indexes that are not valid."""
    return [
        Spot(
            f"index {index.name} of {table.name} on the {side} is not valid",
            "DROP INDEX and build it again",
        )
        for table in tables
        for index in table.indexes
        if not index.is_valid
    ]


def find_columns(
    said: str, is_meant: Callable[[str, str, str], bool]
) -> Callable[[Side, Iterable[Table]], list[Spot]]:
    """Return a finder of columns by identity, generation and base type, a line for each table."""

    def find(side: Side, tables: Iterable[Table]) -> list[Spot]:
        found = {
            table.name: [
                quote_name(column.name)
                for column in table.columns
                if is_meant(column.identity, column.generated, column.base_type)
            ]
            for table in tables
        }
        return [
            Spot(f"{name_some(columns)} of {name} on the {side}: {said}")
            for name, columns in found.items()
            if columns
        ]

    return find


def find_exclusions(side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Find exclusion constraints."""
    return [
        Spot(f"{index.constraint} of {table.name} on the {side} is an exclusion constraint")
        for table in tables
        for index in table.indexes
        if index.constraint_kind == "x"
    ]


def find_deferrable(side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Find constraints that can be checked at commit."""
    found = [
        (str(index.constraint), table)
        for table in tables
        for index in table.indexes
        if index.is_deferrable
    ]
    found += [
        (key.name, table)
        for table in tables
        for key in table.foreign_keys
        if " DEFERRABLE" in key.definition
    ]
    return [Spot(f"{name} of {table.name} on the {side} is deferrable") for name, table in found]


def find_sequences(side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Tell of the sequences that columns draw from."""
    return [
        Spot(f"{each.column} of {table.name} on the {side} draws from sequence {each.name}")
        for table in tables
        for each in table.sequences
    ]


def see_tables(
    find: Callable[[Side, Iterable[Table]], list[Spot]],
) -> Callable[[Survey, Side], Awaitable[list[Spot]]]:
    """Return a check of what a catalog says of the tables."""

    async def see(survey: Survey, side: Side) -> list[Spot]:
        return find(side, (await survey.tables(side)).values())

    return see


async def see_shared_sequences(survey: Survey, side: Side) -> list[Spot]:
    """Find sequences that other tables draw from, too."""
    tables = (await survey.tables(side)).values()
    oids = [each.oid for table in tables for each in table.sequences]
    if not oids:
        return []
    parts = [part.oid for part in await survey.parts(side)]
    rows = await survey.session(side).fetch_all(
        "checks_tables", "find_shared_sequences", oids, parts
    )
    return [
        Spot(f"{row.table_name}, which stays, draws from sequence {row.sequence_name} as well")
        for row in rows
    ]


def find_lacking_labels(maps: Iterable[TableMap]) -> list[Spot]:
    """Find labels of the monolith's enums that those of the service lack."""
    spots: list[Spot] = []
    for each in maps:
        for pair in each.pairs:
            mine, theirs = each.source.column(pair.origin or ""), each.target.column(pair.name)
            if mine is None or theirs is None or not mine.labels or not theirs.labels:
                continue
            known = {label for _, label in theirs.labels}
            lacking = [label for _, label in mine.labels if label not in known]
            spots += [
                Spot(
                    f"{theirs.type_name}, the type of {quote_name(theirs.name)} of "
                    f"{each.target.name} on the service, lacks the label {label!r}",
                    f"ALTER TYPE {theirs.type_name} ADD VALUE {_literal(label)}"
                    if theirs.is_enum
                    else "",
                )
                for label in lacking
            ]
    return spots


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)


async def see_labels(survey: Survey, _: Side) -> list[Spot]:
    """Find labels of enums that the service lacks."""
    maps, _misfits = await survey.fit()
    return find_lacking_labels(maps)


async def see_inheritance(survey: Survey, side: Side) -> list[Spot]:
    """Find inheritance that is not partitioning, and tables that are parts of others."""
    parts = await survey.parts(side)
    spots = [
        Spot(f"{part.name} on the {side} inherits from {part.root}: its rows come along")
        for part in parts
        if not part.is_root and not part.is_partition
    ]
    roots = [part.oid for part in parts if part.is_root]
    rows = await survey.session(side).fetch_all("checks_tables", "find_parents", roots)
    spots += [
        Spot(
            f"{row.table_name} on the {side} is a "
            f"{'partition' if row.is_partition else 'child'} of {row.parent_name}"
        )
        for row in rows
    ]
    return spots


async def see_extensions(survey: Survey, side: Side) -> list[Spot]:
    """Find extensions that the family uses and the service's database lacks."""
    rows = await survey.fetch_parts(side, "checks_tables", "find_extensions")
    names = [row.name for row in rows]
    missing = await survey.session(Side.SERVICE).fetch_all(
        "checks_tables", "find_missing_extensions", names
    )
    return [
        Spot(
            f"the monolith's tables use the extension {row.name}, which the service's database "
            "does not have",
            f"CREATE EXTENSION {quote_name(row.name)}"
            if row.is_available
            else "its package has to be installed on the service's server first",
        )
        for row in missing
    ]


async def see_own_types(survey: Survey, side: Side) -> list[Spot]:
    """Find types that the service's tables are still to be made of."""
    absent = {each.name for each in await survey.presences(Side.SERVICE) if each.oid is None}
    targets = {each.name: each.target for each in survey.config.tables}
    oids = [
        each.oid
        for each in await survey.presences(side)
        if each.oid is not None and targets[each.name] in absent
    ]
    rows = await survey.session(side).fetch_all("checks_tables", "find_own_types", oids)
    missing = await survey.session(Side.SERVICE).fetch_all(
        "checks_tables", "find_missing_types", sorted({row.type_name for row in rows})
    )
    return [
        Spot(f"the type {row.name}, which the monolith's tables use, is not on the service")
        for row in missing
    ]


async def see_hypertables(survey: Survey, side: Side) -> list[Spot]:
    """Find hypertables."""
    session = survey.session(side)
    if not (await session.fetch_one("checks_tables", "has_hypertables")).is_there:
        return []
    rows = await survey.fetch_parts(side, "checks_tables", "find_hypertables")
    return [Spot(f"{row.table_name} on the {side} is a hypertable") for row in rows]


async def see_rows(survey: Survey, side: Side) -> list[Spot]:
    """Find tables of the service with rows, before there is a migration."""
    session = survey.session(side)
    if await ledger.read_run(session) is not None:
        return []
    return [
        Spot(f"{table.name} on the {side} is not empty")
        for table in (await survey.tables(side)).values()
        # A table without a block has no row; so almost none has to be asked.
        if any(leaf.blocks for leaf in table.leaves)
        and not await ledger.is_empty(session, table.name)
    ]
