"""Stages: temporary tables for keys and rows on the cold side, and the statements that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import digest, queries
from ordermigrate.digest import View
from ordermigrate.model import Index, Table, TableMap

DIGEST = "ordermigrate_digest"
SCHEMA = "pg_temp"


@dataclass(frozen=True, slots=True)
class Stage:
    """The temporary tables of one table of the family, and the statements that use them."""

    map: TableMap
    number: int
    view: View

    @property
    def keys(self) -> str:
        """Name of the table for keys."""
        return f"ordermigrate_keys_{self.number}"

    @property
    def rows(self) -> str:
        """Name of the table for rows."""
        return f"ordermigrate_rows_{self.number}"

    @property
    def all_keys(self) -> str:
        """Name of the table for all keys of the source, where they are compared."""
        return f"ordermigrate_all_keys_{self.number}"

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns of a staged row, in the order in which they travel."""
        return (*(pair.name for pair in self.map.copied), DIGEST)

    def compose(self, block: str, **parts: sql.Composable) -> str:
        """Return a block of apply.sql about this table."""
        common: dict[str, sql.Composable] = {
            "table": self.map.target.name.sql,
            "key_stage": sql.Identifier(SCHEMA, self.keys),
            "row_stage": sql.Identifier(SCHEMA, self.rows),
            "match": self._match("t", "s"),
        }
        return queries.compose("apply", block, **(common | parts))

    def _match(self, left: str, right: str, columns: Sequence[str] | None = None) -> sql.Composed:
        return match(self.map.target, left, right, columns or self.map.key)

    @property
    def _fixed(self) -> tuple[str, ...]:
        """Columns that an UPDATE may not set: identity columns that are always generated."""
        columns = self.map.target.columns
        return tuple(column.name for column in columns if column.identity == "a")

    def differs(self, names: Sequence[str], alias: str = "s") -> sql.Composed:
        """Return the condition that a column's image is another in the table, as `t`."""
        return sql.SQL("ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record").format(
            *(
                sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
                for alias in ("t", alias)
            )
        )

    def analyze(self) -> str:
        """Return the statement that lets the planner know how many keys are staged."""
        key = sql.SQL(", ").join(map(sql.Identifier, self.map.key))
        return self.compose("analyze_stages", key=key)

    def keep_gone(self) -> str:
        """Return the statement that leaves, of the staged keys, those that the source lacks."""
        return self.compose("keep_gone", match=self._match("s", "k"))

    def delete_keys(self) -> str:
        """Return the statement that removes the rows of the staged keys."""
        return self.compose("delete_keys", match=self._match("t", "k"))

    @property
    def _compared(self) -> list[str]:
        return [pair.name for pair in self.map.copied if not pair.is_frozen]

    @property
    def misfitting(self) -> list[str]:
        """Columns that no UPDATE may set, and that have to be what they are on the source."""
        return [name for name in self._fixed if name in self._compared]

    @property
    def updated(self) -> list[str]:
        """Columns that an UPDATE brings."""
        return [name for name in self._compared if name not in self._fixed]

    def delete_misfits(self) -> str | None:
        """Return the statement for rows that no UPDATE can bring to what they are to be."""
        if not self.misfitting:
            return None
        return self.compose("delete_changed", differs=self.differs(self.misfitting))

    def make_way(self, *, is_sparing: bool = False) -> list[str]:
        """Return the statements that take rows off which an UPDATE would stumble over.

        Where that is sparing, rows stay to which others of other tables refer.
        """
        staged = {pair.name for pair in self.map.copied}
        matched = self._match("t", "s")
        if is_sparing:
            matched = sql.SQL(" AND ").join([matched, *self._unreferred()])
        if any(
            _is_intricate(index) or (index.is_unique and not set(index.columns) <= staged)
            for index in self.map.target.indexes
        ):
            differs = self.differs(self._compared)
            return [self.compose("delete_changed", match=matched, differs=differs)]
        return [
            self.compose(
                "delete_movers",
                match=matched,
                same_value=self._match("t", "other", index.columns),
                other_match=self._match("other", "s"),
            )
            for index in self.map.target.indexes
            # One that holds the whole key can only be held by the row itself.
            if index.is_unique and not set(self.map.key) <= set(index.columns)
        ]

    def _unreferred(self) -> list[sql.Composed]:
        """Return the conditions that no row refers to one of the table, as `t`, by a foreign key.

        Of other rows of the table itself, too.
        """
        return [
            sql.SQL("NOT EXISTS (SELECT FROM {} AS r WHERE {})").format(
                key.table.sql,
                sql.SQL(" AND ").join(
                    _is_same(
                        self.map.target,
                        referenced,
                        sql.Identifier("r", column),
                        sql.Identifier("t", referenced),
                    )
                    for column, referenced in zip(key.columns, key.referenced_columns, strict=True)
                ),
            )
            for key in self.map.target.incoming_keys
        ]

    def update_changed(self) -> str | None:
        """Return the statement for rows that differ; None where no column can."""
        if not self.updated:
            return None
        return self.compose(
            "update_changed",
            assignments=self.assignments(),
            differs=self.differs(self.updated),
        )

    def assignments(self, alias: str = "s") -> sql.Composed:
        """Return what an UPDATE sets, from the row that an alias stands for."""
        return sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(alias, name))
            for name in self.updated
        )

    def insert_missing(self) -> str:
        """Return the statement for rows that the target does not have."""
        names = [pair.name for pair in self.map.copied]
        return self.compose(
            "insert_missing",
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            staged=sql.SQL(", ").join(sql.Identifier("s", name) for name in names),
        )

    def find_unequal(self) -> str:
        """Return the query for keys whose rows are not what the source has."""
        return self.compose(
            "find_unequal",
            key_texts=sql.SQL(", ").join(
                sql.SQL("{}::text").format(sql.Identifier("s", name)) for name in self.map.key
            ),
            digest=sql.SQL(digest.text_digest(self.view)),
        )

    def find_refused(self) -> str:
        """Return the search for the row that the target refuses."""
        names = [pair.name for pair in self.map.copied]
        described = sql.SQL(" || ', ' || ").join(
            sql.SQL("{} || coalesce({}::text, 'NULL')").format(
                sql.Literal(f"{name} = "), sql.Identifier("one", name)
            )
            for name in self.map.key
        )
        return self.compose(
            "find_refused",
            match=self._match("t", "one"),
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=sql.SQL(", ").join(sql.Identifier("one", name) for name in names),
            row_key=described,
        )


def match(table: Table, left: str, right: str, columns: Sequence[str]) -> sql.Composed:
    """Return the condition that columns of a table are equal under two aliases."""
    return sql.SQL(" AND ").join(
        _is_same(table, name, sql.Identifier(left, name), sql.Identifier(right, name))
        for name in columns
    )


def _is_same(table: Table, name: str, left: sql.Composable, right: sql.Composable) -> sql.Composed:
    """Return the condition that two values of a table's column are equal."""
    column = table.column(name)
    if column is None:
        return sql.SQL("{} = {}").format(left, right)
    return column.is_same(left, right)


def _is_intricate(index: Index) -> bool:
    """Whether an index's conflicts cannot be told by comparing columns."""
    is_plain = (
        index.method == "btree"
        and not index.is_partial
        and "(" not in _after_on(index)
        # Where it takes values for equal that `=` on the columns does not.
        and " COLLATE " not in index.definition
        and " NULLS NOT DISTINCT" not in index.definition
    )
    return index.constraint_kind == "x" or (index.is_unique and not is_plain)


def _after_on(index: Index) -> str:
    """Return what an index is over, without its outer parentheses."""
    listed = index.definition.partition(" USING ")[2].partition("(")[2]
    return listed.partition(" INCLUDE ")[0].removesuffix(")")
