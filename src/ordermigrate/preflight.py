"""What must be true of both databases before anything of ours is put into them.

Every finding is looked for, and all of them are told at once: an operator should not have to
learn of them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from ordermigrate import catalog
from ordermigrate.config import TableConfig
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import Side, TableMap, quote_name


async def require_visible_rows(
    monolith: Session, service: Session, configured: Sequence[TableConfig]
) -> None:
    """Raise `Refused` where row level security would hide rows from us."""
    _refuse(await _find_hidden_rows(monolith, service, configured), "We would not see every row")


async def _find_hidden_rows(
    monolith: Session, service: Session, configured: Sequence[TableConfig]
) -> list[str]:
    sources = await catalog.find_tables(monolith, [each.name for each in configured])
    targets = await catalog.find_tables(service, [each.target for each in configured])
    return [
        f"row level security of {presence.name} on the {side} applies to our role and would hide "
        "rows from us (connect as the table's owner, or as a role with BYPASSRLS)"
        for side, presences in (("monolith", sources), ("service", targets))
        for presence in presences
        if presence.hides_rows
    ]


async def require_rights(
    monolith: Session, service: Session, configured: Sequence[TableConfig]
) -> None:
    """Raise `Refused` unless we may read the monolith's tables and own the service's."""
    findings = await _find_hidden_rows(monolith, service, configured)
    for presence in await catalog.find_tables(service, [each.target for each in configured]):
        if not presence.can_insert:
            findings.append(f"we may not insert into {presence.name} on the service")
        if not presence.is_owned:
            findings.append(
                f"{presence.name} on the service belongs to another role than ours: its indexes "
                "cannot be dropped for the load and built after it (connect as its owner, or "
                "GRANT the owner's role to ours)"
            )
    for presence in await catalog.find_tables(monolith, [each.name for each in configured]):
        if not presence.is_owned:
            findings.append(
                f"{presence.name} on the monolith belongs to another role than ours: capturing its "
                "writes takes triggers that its owner alone can make fire always (connect as its "
                "owner, or GRANT the owner's role to ours)"
            )
    for side in (monolith, service):
        there = await side.fetch_one("sides", "has_schema")
        if not there.is_there and not there.can_create:
            findings.append(
                f"we may not create the schema ordermigrate in the {side.side}'s database "
                f"(GRANT CREATE ON DATABASE {quote_name(side.identity.database)} TO our role)"
            )
    _refuse(findings, "Our rights do not suffice")


async def require_sound_expressions(monolith: Session, configured: Sequence[TableConfig]) -> None:
    """Raise `UsageError` where SQL of the configuration is none that the monolith understands."""
    faults: list[str] = []
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
                faults.append(f"{key} of {table.name}, {text!r}: {said}")
    if faults:
        raise UsageError(
            "The configuration holds SQL that the monolith does not accept: " + "; ".join(faults),
            wanted="Expressions over the columns of the table's own row; `where` is a condition",
            todo="Correct them under [[tables]]",
        )


def require_followable(configured: Sequence[TableConfig]) -> None:
    """Raise `Refused` where a column is made from what no change log of its table tells of."""
    _refuse(
        [
            f"column {quote_name(name)} of {table.target} depends on {rule.depends.table}, whose "
            "changes this version does not capture (make it `frozen`, or leave it out)"
            for table in configured
            for name, rule in table.columns.items()
            if rule.depends is not None
        ],
        "The configuration cannot be followed",
    )


def require_sound_tables(maps: Sequence[TableMap]) -> None:
    """Raise `Refused` where a table itself could not hold what it has or is brought."""
    findings = [
        f"{leaf.name} on the {side} is UNLOGGED: a crash would empty it"
        + (", and leave no trace of that in its change log" if side is Side.MONOLITH else "")
        + f" (ALTER TABLE {leaf.name} SET LOGGED)"
        for each in maps
        for side, table in ((Side.MONOLITH, each.source), (Side.SERVICE, each.target))
        for leaf in table.leaves
        if leaf.is_unlogged
    ]
    findings.extend(
        f"index {index.name} of {each.target.name} on the service is not valid "
        f"(DROP INDEX and build it again)"
        for each in maps
        for index in each.target.indexes
        if not index.is_valid
    )
    _refuse(findings, "The tables are not fit to be copied")


def _refuse(findings: list[str], fact: str) -> None:
    if findings:
        raise Refused(
            f"{fact}: " + "; ".join(findings),
            wanted="All of it settled before the migration touches anything",
            todo="Settle each finding and run the command again",
            findings=findings,
        )
