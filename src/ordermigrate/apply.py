"""Apply: bring the rows of given keys on the cold side to what they are on the hot side.

The one way to write a row there after the bulk copy. Keys and rows, as of one snapshot of the
source, are staged in temporary tables by COPY; then, in one transaction: delete what is gone, make
way for unique values that move between rows, update what differs in its image, insert what is
missing, and compare the digest of every row written with the one that the source has given. No old
images are replayed, so it does not matter how often, or in how many steps, a row has changed, and
applying the same keys again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import digest, queries
from ordermigrate.digest import View
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.model import Index, TableMap
from ordermigrate.stream_sessions import StreamSession

DIGEST = "ordermigrate_digest"
# So few rows are best found by the key's index, one by one; with more, the planner needs to know.
FEW_ROWS = 200
_WAYS = ("seqscan", "hashjoin", "mergejoin")
BY_INDEX = "; ".join(f"SET LOCAL enable_{way} = off" for way in _WAYS)
BY_STATISTICS = "; ".join(
    [*(f"SET LOCAL enable_{way} = on" for way in _WAYS), "SET LOCAL work_mem = '64MB'"]
)
_SCHEMA = "pg_temp"


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done to one table: rows inserted or updated, and rows removed."""

    written: int
    deleted: int


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
            "key_stage": sql.Identifier(_SCHEMA, self.keys),
            "row_stage": sql.Identifier(_SCHEMA, self.rows),
            "match": self._match("t", "s"),
        }
        return queries.compose("apply", block, **(common | parts))

    def _match(self, left: str, right: str, columns: Sequence[str] | None = None) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(left, name), sql.Identifier(right, name))
            for name in columns or self.map.key
        )

    @property
    def _fixed(self) -> tuple[str, ...]:
        """Columns that an UPDATE may not set: identity columns that are always generated."""
        columns = self.map.target.columns
        return tuple(column.name for column in columns if column.identity == "a")

    def _differs(self, names: Sequence[str]) -> sql.Composed:
        return sql.SQL("ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record").format(
            *(
                sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
                for alias in ("t", "s")
            )
        )

    def analyze(self) -> str:
        """Return the statement that lets the planner know how many keys are staged."""
        key = sql.SQL(", ").join(map(sql.Identifier, self.map.key))
        return self.compose("analyze_stages", key=key)

    def delete_keys(self) -> str:
        """Return the statement that removes the rows of the staged keys."""
        return self.compose("delete_keys", match=self._match("t", "k"))

    def delete_gone(self) -> str:
        """Return the statement for keys that the source no longer has."""
        return self.compose(
            "delete_gone", match=self._match("t", "k"), stage_match=self._match("s", "k")
        )

    def make_way(self) -> list[str]:
        """Return the statements that take rows off which an UPDATE would stumble over."""
        compared = [pair.name for pair in self.map.copied if not pair.is_frozen]
        statements: list[str] = []
        fixed = [name for name in self._fixed if name in compared]
        staged = {pair.name for pair in self.map.copied}
        if any(
            _is_intricate(index) or (index.is_unique and not set(index.columns) <= staged)
            for index in self.map.target.indexes
        ):
            return [self.compose("delete_changed", differs=self._differs(compared))]
        if fixed:
            statements.append(self.compose("delete_changed", differs=self._differs(fixed)))
        statements.extend(
            self.compose(
                "delete_movers",
                same_value=self._match("t", "other", index.columns),
                other_match=self._match("other", "s"),
            )
            for index in self.map.target.indexes
            # One that holds the whole key can only be held by the row itself.
            if index.is_unique and not set(self.map.key) <= set(index.columns)
        )
        return statements

    def update_changed(self) -> str | None:
        """Return the statement for rows that differ; None where no column can."""
        names = [
            pair.name
            for pair in self.map.copied
            if not pair.is_frozen and pair.name not in self._fixed
        ]
        if not names:
            return None
        assignments = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier("s", name))
            for name in names
        )
        return self.compose("update_changed", assignments=assignments, differs=self._differs(names))

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


async def create_stages(target: StreamSession, stages: Sequence[Stage]) -> None:
    """Create the temporary tables, once for each connection."""
    for stage in stages:
        key = sql.SQL(", ").join(sql.Identifier("t", name) for name in stage.map.key)
        for name in (stage.keys, stage.all_keys):
            await target.run(
                stage.compose("create_key_stage", stage=sql.Identifier(_SCHEMA, name), key=key)
            )
        await target.run(
            stage.compose(
                "create_row_stage",
                stage=sql.Identifier(_SCHEMA, stage.rows),
                columns=sql.SQL(", ").join(
                    sql.Identifier("t", pair.name) for pair in stage.map.copied
                ),
            )
        )
    await target.run(queries.get("apply", "create_refused"))


async def apply_stage(
    target: StreamSession,
    stage: Stage,
    *,
    staged_rows: int,
    is_truncated: bool,
    is_compared: bool,
) -> Applied:
    """Bring one table to what is staged, in the caller's transaction, and verify it.

    Args:
        target: In a transaction that passes the fence.
        stage: The table, with its keys and rows staged.
        staged_rows: How many keys and rows there are at most.
        is_truncated: Whether all rows have to go first.
        is_compared: Whether all of the source's keys are staged, and all others have to go.

    Raises:
        Refused: The target refuses a row (the key, the constraint and the value are named), or
            something there changes rows while they are written.

    """
    is_few = staged_rows < FEW_ROWS and not is_compared
    await target.run(BY_INDEX if is_few else f"{BY_STATISTICS}; {stage.analyze()}")
    await target.run("SAVEPOINT ordermigrate_apply")
    try:
        applied = await _write(target, stage, is_truncated=is_truncated, is_compared=is_compared)
        await target.run("SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT ordermigrate_apply")
    except Refused as refused:
        if refused.sqlstate[:2] not in {"22", "23"}:
            raise
        await target.run("ROLLBACK TO SAVEPOINT ordermigrate_apply")
        try:
            # Else a unique value that moves between rows would be taken for the cause.
            await _delete_absent(target, stage, is_truncated=is_truncated, is_compared=is_compared)
            await target.run(f"{stage.delete_keys()}; SET CONSTRAINTS ALL IMMEDIATE")
        except Refused:  # something else still refers to them
            await target.run("ROLLBACK TO SAVEPOINT ordermigrate_apply")
        raise await _explain(target, stage, refused) from refused
    unequal = await target.fetch(stage.find_unequal())
    if unequal:
        keys = "; ".join(
            ", ".join(f"{name} = {text}" for name, text in zip(stage.map.key, each, strict=True))
            for each in (row["key_texts"] for row in unequal)
        )
        raise Refused(
            f"Rows of {stage.map.target.name} on the {target.side} are not what was written to "
            f"them: {keys}",
            wanted="Tables on which nothing but ordermigrate acts: no trigger, no rule",
            todo="Look for what changes them; `ordermigrate prepare` switches user triggers off. "
            "Nothing of this round was kept",
        )
    return applied


async def _write(
    target: StreamSession, stage: Stage, *, is_truncated: bool, is_compared: bool
) -> Applied:
    written = 0
    deleted = await _delete_absent(
        target, stage, is_truncated=is_truncated, is_compared=is_compared
    )
    deleted += await target.count(stage.delete_gone())
    for statement in stage.make_way():
        await target.run(statement)
    if update := stage.update_changed():
        written += await target.count(update)
    written += await target.count(stage.insert_missing())
    return Applied(written, deleted)


async def _delete_absent(
    target: StreamSession, stage: Stage, *, is_truncated: bool, is_compared: bool
) -> int:
    """Remove the rows that a mark in the log stands for; return how many."""
    if is_truncated:
        return await target.count(stage.compose("delete_all"))
    if is_compared:
        return await target.count(
            stage.compose("delete_strangers", stage=sql.Identifier(_SCHEMA, stage.all_keys))
        )
    return 0


async def _explain(target: StreamSession, stage: Stage, refused: Refused) -> OrdermigrateError:
    """Name the row that the target refuses, the constraint, and what the server says of it."""
    await target.run(stage.find_refused())
    found = await target.fetch(queries.get("apply", "read_refused"))
    if not found:
        return refused  # not a row by itself: the message of the whole statement has to do
    row = found[0]
    detail = f" ({row['detail'].rstrip('.')})" if row["detail"] else ""
    named = Refused(
        f"The {target.side} refuses the row of {stage.map.target.name} with {row['row_key']}: "
        f"{row['message'].rstrip('.')}{detail}",
        wanted="Constraints on the cold side that every row of the hot side fits"
        + (f"; this one is {row['constraint_name']}" if row["constraint_name"] else ""),
        todo=f"Correct the row on the {target.side.other}, or drop or adapt the constraint on the "
        f"{target.side}; then run the command again. Nothing of this round was kept, nothing is "
        "lost: the change stays in the log",
    )
    named.sqlstate = refused.sqlstate
    return named
