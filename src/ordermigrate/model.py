"""Values that several modules speak of: sides, names, tables as a catalog describes them.

Nothing here does I/O; everything is frozen.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from psycopg import sql

# PostgreSQL folds the letters of ASCII and leaves all others as they are.
_FOLDED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*\Z")
# Reserved in PostgreSQL (manual, appendix C): as a name such a word needs its quotes.
_RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check
    collate collation column concurrently constraint create cross current_catalog current_date
    current_role current_schema current_time current_timestamp current_user default deferrable desc
    distinct do else end except false fetch for foreign freeze from full grant group having ilike in
    initially inner intersect into is isnull join lateral leading left like limit localtime
    localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
    references returning right select session_user similar some symmetric system_user table
    tablesample then to trailing true union unique user using variadic verbose when where window
    with
    """.split()  # noqa: SIM905  a list of words
)
_QUOTED_PART = re.compile(r'"((?:[^"]|"")+)"|([^".\s]+)')


class Side(StrEnum):
    """One of the two databases, by identity; what it does at the moment is another matter."""

    MONOLITH = "monolith"
    SERVICE = "service"

    @property
    def other(self) -> Side:
        """The other one."""
        return Side.SERVICE if self is Side.MONOLITH else Side.MONOLITH


class Direction(StrEnum):
    """Which way rows go: from the owner, the source, to the other side, the target."""

    FORWARD = "forward"
    REVERSE = "reverse"

    @classmethod
    def from_source(cls, source: Side) -> Direction:
        """Return the direction in which a side is the source."""
        return cls.FORWARD if source is Side.MONOLITH else cls.REVERSE

    @property
    def source(self) -> Side:
        """The side that rows come from."""
        return Side.MONOLITH if self is Direction.FORWARD else Side.SERVICE

    @property
    def target(self) -> Side:
        """The side that they go to."""
        return self.source.other

    @property
    def command(self) -> str:
        """The command that moves the ownership this way."""
        return "cutover" if self is Direction.FORWARD else "rollback"

    @property
    def command_line(self) -> str:
        """The same, as an operator types it."""
        return f"ordermigrate {self.command}"


def quote_name(name: str) -> str:
    """Return `name` as one writes it in SQL, in double quotes only where they are needed."""
    if _PLAIN.match(name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A schema and a table in it, both exactly as the catalog has them."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read `schema.table` as SQL reads it: folded to lower case unless in double quotes.

        Raises:
            ValueError: `text` is not two names joined by a dot.

        """
        parts: list[str] = []
        position = 0
        while match := _QUOTED_PART.match(text, position):
            quoted, plain = match.groups()
            parts.append(quoted.replace('""', '"') if quoted else plain.translate(_FOLDED))
            position = match.end()
            if text[position : position + 1] != ".":
                break
            position += 1
        if position != len(text) or len(parts) != 2:  # noqa: PLR2004  schema and table
            message = (
                f"{text!r} is not the name of a table with its schema; write it as public.orders, "
                'or as public."Order Lines" where it has capitals, spaces or quotes'
            )
            raise ValueError(message)
        return cls(*parts)

    def __str__(self) -> str:
        """Write the name as SQL would."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"

    @property
    def sql(self) -> sql.Identifier:
        """The name, ready to be put into a statement."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `type_name` is PostgreSQL's own spelling with modifiers (`numeric(18,8)`); `base_type` is that
    of the type below any domain, and without modifiers. `is_builtin` says that the column's own
    type has the same OID in every database; `is_binary_safe`, that the binary form of a value
    means the same in another database; `equality_schema`, where the type's `=` is if that is not
    PostgreSQL's own. `labels` are those of the enums inside the type, each with its OID, which it
    keeps when it is renamed.
    """

    name: str
    position: int
    type_name: str
    base_type: str
    is_builtin: bool
    is_enum: bool
    is_binary_safe: bool
    is_not_null: bool
    identity: str
    generated: str
    collation: str | None
    equality_schema: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    has_default: bool = False

    @property
    def equals(self) -> sql.Composable:
        """The type's own `=`, as an operator in SQL."""
        if self.equality_schema is None:
            return sql.SQL("OPERATOR(pg_catalog.=)")
        return sql.SQL("OPERATOR({}.=)").format(sql.Identifier(self.equality_schema))

    def is_same(self, left: sql.Composable, right: sql.Composable) -> sql.Composed:
        """Return the condition that two values of the column are equal."""
        if self.is_enum and self.type_name != self.base_type:
            # The server finds no `=` for a domain over an enum: that of the enum it is.
            left, right = (
                sql.SQL("{}::{}").format(each, sql.SQL(self.base_type)) for each in (left, right)
            )
        return sql.SQL("{} {} {}").format(left, self.equals, right)


@dataclass(frozen=True, slots=True)
class Index:
    """An index that stands by itself or behind a constraint.

    `constraint` and `constraint_definition` are those of a primary key, unique or exclusion
    constraint; `needed_by` names what would have to go with the index.
    """

    name: str
    table: TableName
    definition: str
    is_unique: bool
    is_primary: bool
    is_valid: bool
    is_partial: bool
    columns: tuple[str, ...]
    method: str
    tablespace: str
    comment: str | None
    is_replica_identity: bool
    is_clustered: bool
    constraint: str | None
    constraint_kind: str
    constraint_definition: str | None
    constraint_comment: str | None
    is_deferrable: bool
    needed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK constraint."""

    name: str
    definition: str
    is_validated: bool
    is_inherited: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key, seen from the family: `within` it, `out` of it, or `into` it."""

    name: str
    table: TableName
    columns: tuple[str, ...]
    references: TableName
    referenced_columns: tuple[str, ...]
    definition: str
    is_validated: bool


@dataclass(frozen=True, slots=True)
class Trigger:
    """A user's trigger; `enabled` is `pg_trigger.tgenabled`: O, D, R or A."""

    name: str
    table: TableName
    oid: int
    version: str
    enabled: str
    definition: str
    function: str


@dataclass(frozen=True, slots=True)
class OwnTrigger:
    """A trigger of ours; `version` changes whenever it is switched, off and on again included."""

    table: TableName
    table_oid: int
    name: str
    oid: int
    version: str
    enabled: str
    is_clone: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence that a column owns or that its default draws from."""

    name: TableName
    column: str
    oid: int
    last_value: int | None
    increment: int
    cache: int
    least: int
    most: int
    can_set: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece of a table that has a file of its own: the table itself, or a partition."""

    oid: int
    name: TableName
    filenode: int | None
    blocks: int
    bound: str | None
    access_method: str
    is_unlogged: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table as one database's catalog describes it."""

    oid: int
    name: TableName
    kind: str
    owner: str
    has_row_security: bool
    rows_estimate: int
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    checks: tuple[Check, ...]
    foreign_keys: tuple[ForeignKey, ...]
    incoming_keys: tuple[ForeignKey, ...]
    triggers: tuple[Trigger, ...]
    sequences: tuple[Sequence, ...]
    leaves: tuple[Leaf, ...]

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The primary key's columns in its own order; empty where there is none."""
        return next((index.columns for index in self.indexes if index.is_primary), ())

    @property
    def is_partitioned(self) -> bool:
        """Whether the rows live in partitions."""
        return self.kind == "p"

    def column(self, name: str) -> Column | None:
        """Return the column of that name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)

    def has_index_on(self, key: tuple[str, ...]) -> bool:
        """Whether there is an index by which a row of such a key is found."""
        return any(
            index.method == "btree"
            and not index.is_partial
            and set(index.columns[: len(key)]) == set(key)
            for index in self.indexes
        )

    def foreign_keys_by_scope(self, family: frozenset[TableName]) -> dict[str, list[ForeignKey]]:
        """Sort this table's foreign keys, both directions, by how they stand to the family."""
        return {
            "within": [key for key in self.foreign_keys if key.references in family],
            "out": [key for key in self.foreign_keys if key.references not in family],
            "into": [key for key in self.incoming_keys if key.table not in family],
        }


@dataclass(frozen=True, slots=True)
class ColumnPair:
    """How one target column gets its value.

    `expression` is over the source row, of the target's type where the source knows that type.
    `source_compare` and `target_compare` are what row digests take on each side. `origin` is the
    source column that goes over as it is, if one does. A frozen column is copied and not
    compared; a generated one is compared and not copied.
    """

    name: str
    expression: str
    source_compare: str
    target_compare: str
    is_binary_safe: bool
    origin: str | None = None
    is_frozen: bool = False
    is_generated: bool = False


@dataclass(frozen=True, slots=True)
class Dependence:
    """What a column of a table is made from besides its own row: columns of a parent.

    `keys` is the query for the keys of the rows that change with the parent's row `changed`.
    """

    parent: Table
    columns: tuple[str, ...]
    keys: str


@dataclass(frozen=True, slots=True)
class TableMap:
    """A table of the family on both sides, and how its rows go from one to the other."""

    source: Table
    target: Table
    pairs: tuple[ColumnPair, ...]
    key: tuple[str, ...]
    where: str
    status: str | None = None
    user: str | None = None
    created: str | None = None
    updated: str | None = None
    notes: tuple[str, ...] = field(default=())
    # Which rows of the target are compared; `where` says which of the source are.
    target_where: str = "true"
    depends: tuple[Dependence, ...] = ()

    @property
    def is_binary(self) -> bool:
        """Whether every column can travel in COPY's binary format."""
        return all(pair.is_binary_safe for pair in self.copied)

    @property
    def copied(self) -> tuple[ColumnPair, ...]:
        """The columns that a copy writes."""
        return tuple(pair for pair in self.pairs if not pair.is_generated)

    @property
    def label(self) -> str:
        """The table's name on the source, as shown to people and kept in the ledger."""
        return str(self.source.name)


# Tables that columns depend on, each with its columns that are read.
Parents: TypeAlias = dict[TableName, tuple[Table, tuple[str, ...]]]


def find_parents(maps: Many[TableMap]) -> Parents:
    """Return what the family's columns depend on."""
    return collect_parents([each for table in maps for each in table.depends])


def collect_parents(dependences: Many[Dependence]) -> Parents:
    """Return the same of what several columns depend on."""
    found: Parents = {}
    for dependence in dependences:
        name = dependence.parent.name
        _, known = found.get(name, (dependence.parent, ()))
        found[name] = dependence.parent, tuple(sorted({*known, *dependence.columns}))
    return dict(sorted(found.items()))


def names_read(maps: Many[TableMap]) -> list[TableName]:
    """Return all tables of the source that the family's rows are read from."""
    names = [each.source.name for each in maps]
    return [*names, *(name for name in find_parents(maps) if name not in names)]


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database a connection has reached."""

    side: Side
    database: str
    database_oid: int
    system_identifier: int | None
    server_version: int
    encoding: str
    is_in_recovery: bool
    timeline: int | None
    deadlock_timeout_ms: int

    @property
    def version_text(self) -> str:
        """The server's version as people write it."""
        return f"{self.server_version // 10000}.{self.server_version % 10000}"
