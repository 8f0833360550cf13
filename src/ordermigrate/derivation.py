"""Derivation: the service's DDL, made from the monolith's catalog and what pg_dump says of it.

The tables come as they are, with all that they need. What leads out of the family cannot come: a
foreign key is left out, and said, and what it has guarded within the row stays. Nothing of ours is
in it, and no rights: who may do what on the service is decided there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from ordermigrate import needs, partitioning, pieces
from ordermigrate.config import TableConfig
from ordermigrate.control import Session
from ordermigrate.model import ForeignKey, Table, TableName, quote_name
from ordermigrate.needs import Needed, Needs
from ordermigrate.partitioning import Partitioning
from ordermigrate.pieces import Piece

_KEPT = {
    "TABLE",
    "TABLE ATTACH",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "DEFAULT",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "TRIGGER",
    "COMMENT",
    "STATISTICS",
}
_OURS = " ordermigrate_"
# Bodies of functions may name tables that come after them.
HEAD = "SET check_function_bodies = off;"
_TITLE = (
    "The service's tables, derived from the monolith's by `ordermigrate schema`.",
    "Owners, rights, policies and rules are left to the service.",
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What is to be run, and what is to be known of it; either may be empty."""

    text: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Derived:
    """The DDL of a family: what it needs, then the tables.

    `notes` are what an operator should know; they stand in the script as comments, too.
    """

    needed: tuple[Needed, ...]
    statements: tuple[Statement, ...]
    notes: tuple[str, ...]
    schemas: tuple[str, ...]

    def write(self) -> str:
        """Return it as one script."""
        lines = [*(f"-- {each}" for each in _TITLE), "", HEAD]
        lines += [f"CREATE SCHEMA IF NOT EXISTS {quote_name(each)};" for each in self.schemas]
        for each in self.needed:
            lines += ["", each.definition]
        for statement in self.statements:
            lines += ["", *(_comment(each) for each in statement.remarks)]
            lines += [statement.text] if statement.text else []
        return "\n".join(lines) + "\n"


def _comment(remark: str) -> str:
    # A name may hold a line's end, and must not begin a statement by that.
    return f"-- {' '.join(remark.split())}"


async def derive(
    session: Session,
    dsn: str,
    configured: Sequence[TableConfig],
    tables: Mapping[TableName, Table],
    wanted: Sequence[Partitioning],
    stall_seconds: float,
) -> Derived:
    """Derive the DDL of a family's tables.

    Args:
        session: On the monolith.
        dsn: How it is reached.
        configured: The family.
        tables: Its tables as they are there.
        wanted: What is to be partitioned.
        stall_seconds: How often to look whether the server is still there.

    """
    chosen = partitioning.choose_tables(list(tables.values()), wanted)
    parts = {
        name: await partitioning.plan_parts(session, tables[name], how)
        for name, how in chosen.items()
    }
    oids = [each.oid for each in tables.values()]
    for name, table in tables.items():
        oids += [leaf.oid for leaf in table.leaves if name not in chosen]
    found = await needs.find(session, sorted(set(oids)))
    names = [*tables, *found.sequences]
    names += [
        leaf.name for name, table in tables.items() for leaf in table.leaves if name not in chosen
    ]
    names += await _find_middle_parts(session, [tables[name] for name in tables.keys() - chosen])
    dumped = await pieces.dump(session, dsn, list(dict.fromkeys(names)), stall_seconds)
    statements, notes = _select(dumped, tables, chosen)
    for name, how in chosen.items():
        done = partitioning.partition(
            tables[name], [each for _, each in statements], parts[name], how
        )
        statements = [
            (remarks, piece)
            for (remarks, _), piece in zip(statements, done.pieces, strict=True)
            if piece.text or remarks
        ] + [((), piece) for piece in done.parts]
        notes += done.notes
    written = [Statement(piece.text, remarks) for remarks, piece in statements]
    written += await _adapt(session, configured, tables)
    notes += _describe_needs(found)
    told = {remark for statement in written for remark in statement.remarks}
    written += [Statement("", (note,)) for note in notes if note not in told]
    return Derived(found.objects, tuple(written), tuple(notes), _find_schemas(configured, found))


async def _find_middle_parts(session: Session, tables: Sequence[Table]) -> list[TableName]:
    """Return partitions that are partitioned themselves, and so hold no rows."""
    rows = await session.fetch_all("needs", "find_middle_parts", [each.oid for each in tables])
    return [TableName(row.schema_name, row.table_name) for row in rows]


def _find_schemas(configured: Sequence[TableConfig], found: Needs) -> tuple[str, ...]:
    schemas = {*found.schemas}
    for each in configured:
        schemas |= {each.name.schema, each.target.schema}
    return tuple(sorted(schemas - {"public", "pg_catalog"}))


def _select(
    dumped: Sequence[Piece],
    tables: Mapping[TableName, Table],
    chosen: Mapping[TableName, Partitioning],
) -> tuple[list[tuple[tuple[str, ...], Piece]], list[str]]:
    """Return the pieces that go over, with remarks, and what is to be known of the others."""
    gone = {
        (key.table.schema, f"{key.table.name} {key.name}"): (table, key)
        for table in tables.values()
        for key in table.foreign_keys
        if key.references not in tables or key.references in chosen
    }
    selected: list[tuple[tuple[str, ...], Piece]] = []
    notes: list[str] = []
    for piece in dumped:
        if _OURS in f" {piece.name}":
            continue
        if piece.kind == "FK CONSTRAINT" and (piece.schema, piece.name) in gone:
            table, key = gone[piece.schema, piece.name]
            note = _explain_key(table, key, is_within=key.references in tables)
            notes.append(note)
            text = "" if key.references in tables else _guard(table, key)
            selected.append(((note,), replace(piece, text=text)))
        elif piece.kind == "COMMENT" and _is_about(piece, gone):
            continue
        elif piece.kind in _KEPT:
            text = piece.text.replace("CREATE UNLOGGED TABLE ", "CREATE TABLE ", 1)
            selected.append(((), replace(piece, text=text)))
        else:
            notes.append(f"{piece.kind.lower()} {piece.name} is left out")
    return selected, list(dict.fromkeys(notes))


def _is_about(piece: Piece, gone: Mapping[tuple[str, str], tuple[Table, ForeignKey]]) -> bool:
    return any(
        piece.schema == schema and piece.name == f"CONSTRAINT {key.name} ON {key.table.name}"
        for (schema, _), (_, key) in gone.items()
    )


def _explain_key(table: Table, key: ForeignKey, *, is_within: bool) -> str:
    columns = ", ".join(key.columns)
    index = next(
        (each.name for each in table.indexes if each.columns[: len(key.columns)] == key.columns),
        None,
    )
    kept = f"index {index} is kept" if index else f"no index begins with {columns}"
    head = f"foreign key {key.name} of {table.name} ({columns}) is left out: {key.references} "
    if is_within:
        return (
            f"{head}is partitioned here and has no unique key on "
            f"{', '.join(key.referenced_columns)} alone. The application has to keep to it; "
            f"validate looks for orphans; {kept}"
        )
    return f"{head}stays in the monolith. That a row exists there is for its owner to say; {kept}"


def _guard(table: Table, key: ForeignKey) -> str:
    """Return what stays of a foreign key within the row: a value where there had to be one."""
    return "\n".join(
        f"ALTER TABLE {table.name}\n    ADD CONSTRAINT {guard_name(name)} "
        f"CHECK ({quote_name(name)} IS NOT NULL);"
        for name in key.columns
        if (column := table.column(name)) is not None
        and column.is_not_null
        and name not in table.primary_key
        and guard_name(name) not in {each.name for each in table.checks}
    )


def guard_name(column: str) -> str:
    """Return the name of the check that stays in a foreign key's place."""
    return quote_name(f"check_{column}_not_null"[:63])


async def _adapt(
    session: Session, configured: Sequence[TableConfig], tables: Mapping[TableName, Table]
) -> list[Statement]:
    """Return what makes the tables those of the configuration: columns, names, schemas."""
    statements: list[Statement] = []
    for each in configured:
        table = tables[each.name]
        for name, rule in each.columns.items():
            if table.column(name) is not None:
                continue
            origin = rule.sql.strip()
            plain = next((one for one in table.columns if origin == one.name), None)
            if plain and plain.name not in each.columns:
                text = (
                    f"ALTER TABLE {each.name} RENAME COLUMN {quote_name(origin)} "
                    f"TO {quote_name(name)};"
                )
                statements.append(Statement(text))
                continue
            row = await session.fetch_one(
                "needs",
                "find_type",
                expression=sql.SQL(rule.sql),
                table=each.name.sql,
                alias=sql.Identifier(each.name.name),
            )
            text = f"ALTER TABLE {each.name} ADD COLUMN {quote_name(name)} {row.type_name};"
            statements.append(Statement(text, (f"Made of {' '.join(rule.sql.split())}",)))
        statements += _rename(each)
    return statements


def _rename(each: TableConfig) -> list[Statement]:
    found: list[Statement] = []
    if each.target.schema != each.name.schema:
        schema = quote_name(each.target.schema)
        found.append(Statement(f"ALTER TABLE {each.name} SET SCHEMA {schema};"))
    if each.target.name != each.name.name:
        before = TableName(each.target.schema, each.name.name)
        found.append(Statement(f"ALTER TABLE {before} RENAME TO {quote_name(each.target.name)};"))
    return found


def _describe_needs(found: Needs) -> list[str]:
    notes = [f"to be made by hand before this: {each}" for each in found.by_hand]
    notes += [
        f"function {name} names {', '.join(tables)}, which is not in the family: where the service "
        "does not have it, what the function does there fails"
        for name, tables in found.outside
    ]
    return notes
