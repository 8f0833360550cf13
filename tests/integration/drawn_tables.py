"""Table families as hypothesis draws them: columns, keys, parts, foreign keys, rows and changes."""

# ruff: noqa: S608  the statements are the tests' own

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from psycopg import sql

from tests.integration.column_types import Kind

TABLES = ("thing", 'Order "Lines"', "select", "ünï", "a.b", "x" * 63, "100%", "{t}", "s", "stage")
COLUMNS = (
    *("id", "Key", "a b", 'quo"te', "naïve", "user", "s", "t", "k", "k1", "l", "mark", "digest"),
    *("b", "i", "high", "rows", "one", "now", "given", "100%", "%s", "{x}", "$1", "a.b", "y" * 63),
    *(
        "OLD",
        "new",
        "wanted",
        "key_image",
        "part",
        "NULL",
        "\\",
        "'",
        "tableoid2",
        "other",
        "$capture$",
    ),
)
Row = Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column, and how its values come about: written, or by the server."""

    name: str
    kind: Kind
    made: tuple[str, str] = ("", "")

    @property
    def is_written(self) -> bool:
        """Whether statements give it a value."""
        return not any(self.made)


@dataclass(frozen=True)
class Reference:
    """A foreign key: which columns, of which table's key."""

    columns: tuple[str, ...]
    table: str
    key: tuple[str, ...]
    options: str


@dataclass(frozen=True)
class Drawn:
    """A table on both sides, its rows before the copy and the changes after it."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    references: tuple[Reference, ...]
    parts: tuple[tuple[str, ...], tuple[str, ...]]
    rows: tuple[Row, ...]

    @property
    def sql(self) -> str:
        """Its name as one writes it in SQL."""
        return f"public.{identify(self.name)}"

    @property
    def written(self) -> tuple[Column, ...]:
        """The columns that statements write."""
        return tuple(column for column in self.columns if column.is_written)

    @property
    def is_referred_to(self) -> bool:
        """Whether a foreign key may point at it."""
        return all(column.kind.is_referred_to for column in self.columns if column.name in self.key)

    def create(self, side: int, seed: int) -> str:
        """Return its DDL; on the service (1) in another order of columns, and one was dropped."""
        listed = [
            f"{identify(column.name)} {column.kind.name} {column.made[side]}"
            for column in self.columns
        ]
        if side:
            random.Random(seed).shuffle(listed)
            listed.insert(1, '"gone" text')
        key = ", ".join(map(identify, self.key))
        how, *bounds = self.parts[side] or ("",)
        statements = [
            f"CREATE TABLE {self.sql} ({', '.join(listed)}, PRIMARY KEY ({key})) {how}",
            *bounds,
        ]
        if side:
            statements.append(f'ALTER TABLE {self.sql} DROP COLUMN "gone"')
        return "; ".join(statements)

    def refer(self) -> str:
        """Return the DDL of its foreign keys."""
        return "; ".join(
            f"ALTER TABLE {self.sql} ADD FOREIGN KEY ({', '.join(map(identify, each.columns))}) "
            f"REFERENCES public.{identify(each.table)} ({', '.join(map(identify, each.key))}) "
            f"{each.options}"
            for each in self.references
        )

    def insert(self, row: Row, suffix: str = "ON CONFLICT DO NOTHING") -> str:
        """Return the statement that inserts a row."""
        names = ", ".join(identify(column.name) for column in self.written)
        values = ", ".join(row[column.name] for column in self.written)
        return f"INSERT INTO {self.sql} ({names}) VALUES ({values}) {suffix}"

    def find(self, row: Row) -> str:
        """Return the condition for the row that has this one's key.

        As records, for a domain over an enum has no `=` that can be written.
        """
        names = ", ".join(map(identify, self.key))
        values = ", ".join(row[name] for name in self.key)
        return f"ROW({names})::record = ROW({values})::record"


@dataclass(frozen=True)
class Family:
    """Tables, parents first, and what is done to them after the copy."""

    tables: tuple[Drawn, ...]
    changes: tuple[str, ...]
    planted: str
    seed: int


def identify(name: str) -> str:
    """Return a name as SQL writes it."""
    return sql.Identifier(name).as_string(None)


@dataclass(frozen=True)
class Draw:
    """What is drawn from.

    `version` is the older server's: what it does not know is not drawn.
    """

    kinds: Sequence[Kind]
    version: int

    def families(self) -> st.SearchStrategy[Family]:
        """Return the strategy."""
        return st.composite(self._family)()

    def _family(self, draw: st.DrawFn) -> Family:
        tables: list[Drawn] = []
        names = st.lists(st.sampled_from(TABLES), min_size=1, max_size=3, unique=True)
        for name in draw(names):
            parents = [table for table in tables if table.is_referred_to]
            parent = draw(st.sampled_from([None, *parents])) if parents else None
            tables.append(self._table(draw, name, parent))
        changes = draw(
            st.lists(st.sampled_from(tables).flatmap(self._changes), max_size=8).map(tuple)
        )
        filled = [table for table in tables if table.rows]
        planted = draw(st.sampled_from(filled).flatmap(self._updates)) if filled else ""
        return Family(tuple(tables), changes, planted, draw(st.integers(0, 9)))

    def _table(self, draw: st.DrawFn, name: str, parent: Drawn | None) -> Drawn:
        keys = [kind for kind in self.kinds if kind.is_key]
        free = iter(draw(st.permutations(COLUMNS)))
        key = [
            Column(next(free), kind)
            for kind in draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3))
        ]
        others = [
            Column(next(free), kind)
            for kind in draw(st.lists(st.sampled_from(self.kinds), max_size=5))
        ]
        references: list[Reference] = []
        if parent is not None:
            referring = self._referring(parent, free)
            is_owned = draw(st.booleans())
            references.append(self._reference(draw, referring, parent.name, parent.key))
            if is_owned:
                key = [*referring, *key[:1]]
            else:
                others += referring
        is_referred_to = all(column.kind.is_referred_to for column in key)
        if is_referred_to and draw(st.integers(0, 3)) == 0:
            mine = [Column(next(free), column.kind) for column in key]
            own_key = tuple(column.name for column in key)
            references.append(self._reference(draw, mine, name, own_key))
            others += mine
        parts = tuple(draw(self._parts(name, key, side)) for side in ("m", "s"))
        others += self._made_by_server(draw, free, key, has_parts=any(parts))
        table = Drawn(
            name,
            (*key, *others),
            tuple(column.name for column in key),
            tuple(references),
            (parts[0], parts[1]),
            (),
        )
        rows = self._rows(draw, table, parent)
        return Drawn(name, table.columns, table.key, table.references, table.parts, tuple(rows))

    def _referring(self, parent: Drawn, free: Iterator[str]) -> list[Column]:
        kinds = {column.name: column.kind for column in parent.columns}
        return [Column(next(free), kinds[name]) for name in parent.key]

    def _reference(
        self, draw: st.DrawFn, columns: Sequence[Column], table: str, key: tuple[str, ...]
    ) -> Reference:
        deleting = draw(st.sampled_from(["CASCADE", "SET NULL", "NO ACTION"]))
        deferring = draw(st.sampled_from(["", "DEFERRABLE INITIALLY DEFERRED"]))
        options = f"ON UPDATE CASCADE ON DELETE {deleting} {deferring}"
        return Reference(tuple(column.name for column in columns), table, key, options)

    def _made_by_server(
        self, draw: st.DrawFn, free: Iterator[str], key: Sequence[Column], *, has_parts: bool
    ) -> list[Column]:
        """Draw identity and generated columns."""
        made: list[Column] = []
        integer = Kind("bigint", ())
        if not has_parts or self.version >= 17:
            how = draw(st.sampled_from(["", "", "ALWAYS", "BY DEFAULT"]))
            if how:
                identity = f"GENERATED {how} AS IDENTITY"
                made.append(Column(next(free), integer, (identity, identity)))
        first = key[0]
        how = draw(st.sampled_from(["", "STORED", "ours", "VIRTUAL"]))
        is_known = how != "VIRTUAL" or (self.version >= 18 and first.kind.is_built_in)
        if how and is_known:
            expression = f"GENERATED ALWAYS AS (({identify(first.name)} IS NULL)::integer::text)"
            stored = f"{expression} {how if how == 'VIRTUAL' else 'STORED'}"
            pair = (stored, "" if how == "ours" else stored)
            made.append(Column(next(free), Kind("text", ()), pair))
        return made

    def _parts(
        self, name: str, key: Sequence[Column], side: str
    ) -> st.SearchStrategy[tuple[str, ...]]:
        """Return a strategy for how a table is parted: the clause, and the parts' statements."""
        whole = f"public.{identify(name)}"
        label = side + str(sum(map(ord, name)))
        return st.just(()) | st.builds(
            lambda column, how, nested: _part(whole, label, column, how, nested),
            st.sampled_from(key),
            st.sampled_from(["hash", "range", "list"]),
            st.sampled_from([None, *key]),
        )

    def _rows(self, draw: st.DrawFn, table: Drawn, parent: Drawn | None) -> list[Row]:
        rows: list[Row] = []
        for _ in range(draw(st.integers(0, 6))):
            row = dict(draw(self._values(table)))
            for each in table.references:
                known = rows if each.table == table.name else list(parent.rows if parent else ())
                is_key = set(each.columns) <= set(table.key)
                if each.table == table.name:
                    known = [*known, row]
                chosen = draw(st.sampled_from([None, *known])) if not is_key else None
                if is_key:
                    if not known:
                        break
                    chosen = draw(st.sampled_from(known))
                row |= {
                    mine: chosen[theirs] if chosen else "NULL"
                    for mine, theirs in zip(each.columns, each.key, strict=True)
                }
            else:
                rows.append(row)
        return rows

    def _values(self, table: Drawn) -> st.SearchStrategy[Row]:
        return st.fixed_dictionaries(
            {
                column.name: st.sampled_from(
                    column.kind.values
                    if column.name in table.key
                    else (*column.kind.values, "NULL")
                )
                for column in table.written
            }
        )

    def _updates(self, table: Drawn) -> st.SearchStrategy[str]:
        """Return a strategy for statements that change one column of one row."""
        if not table.rows:
            return st.just(f"DELETE FROM {table.sql}")
        return st.builds(
            lambda row, column, values: (
                f"UPDATE {table.sql} SET {identify(column.name)} = {values[column.name]} "
                f"WHERE {table.find(row)}"
            ),
            st.sampled_from(table.rows),
            st.sampled_from(table.written),
            self._values(table),
        )

    def _changes(self, table: Drawn) -> st.SearchStrategy[str]:
        inserts = self._values(table).map(table.insert)
        if not table.rows:
            return inserts
        row = st.sampled_from(table.rows)
        return st.one_of(
            inserts,
            self._updates(table),
            self._updates(table),
            row.map(lambda each: f"DELETE FROM {table.sql} WHERE {table.find(each)}"),
            row.map(
                lambda each: (
                    f"DELETE FROM {table.sql} WHERE {table.find(each)}; {table.insert(each)}"
                )
            ),
            st.just(f"TRUNCATE {table.sql} CASCADE"),
        )


def _part(
    whole: str, label: str, column: Column, how: str, nested: Column | None
) -> tuple[str, ...]:
    """Part a table by a column of its key, in two; the second in two again, perhaps."""
    if how == "hash" and not column.kind.is_hashed:
        how = "list"
    below = ""
    made: list[str] = []
    if nested is not None:
        second = "hash" if nested.kind.is_hashed else "list"
        below, *made = _part(f"public.{label}2", f"{label}n", nested, second, None)
    value = column.kind.values[0]
    bounds = {
        "hash": ("WITH (MODULUS 2, REMAINDER 0)", "WITH (MODULUS 2, REMAINDER 1)"),
        "range": (f"FROM (MINVALUE) TO ({value})", "DEFAULT"),
        "list": (f"IN ({value})", "DEFAULT"),
    }[how]
    first, rest = (bound if bound == "DEFAULT" else f"FOR VALUES {bound}" for bound in bounds)
    return (
        f"PARTITION BY {how} ({identify(column.name)})",
        f"CREATE TABLE public.{label}1 PARTITION OF {whole} {first}",
        f"CREATE TABLE public.{label}2 PARTITION OF {whole} {rest} {below}",
        *made,
    )
