"""Refusals: which staged changes the target does not take, found and set aside.

A search writes what is staged row by row, each under a savepoint, and undoes all of it; so it is
the target itself that says what it refuses, whatever the reason. What was found is taken off the
stages, so that all other rows can go over together, and is put into the target's quarantine in the
transaction that applies them. A key that has been brought leaves the quarantine in the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import queries
from ordermigrate.quarantine import key_value
from ordermigrate.stages import SCHEMA, Stage, match
from ordermigrate.stream_sessions import StreamSession

# The server's codes for a value, for a constraint, and for one too large for an index.
_CLASSES = frozenset({"22", "23", "54"})
_NOTHING = sql.SQL("NULL")
_COUNT = "GET DIAGNOSTICS touched = ROW_COUNT; {0} := {0} + touched"
_UNDO = sql.SQL("RAISE EXCEPTION USING ERRCODE = 'OM002'")
# As often rows are gone over, for each time some may find free what others had held.
_MAX_PASSES = 20


@dataclass(frozen=True, slots=True)
class Searched:
    """What one search has come to; rows are written and deleted only where it was in earnest."""

    refused: int
    written: int
    deleted: int


def is_refusal(sqlstate: str) -> bool:
    """Whether a server's code says that it does not take a row, and not that it cannot work."""
    return sqlstate[:2] in _CLASSES


async def create(target: StreamSession) -> None:
    """Create the temporary table for what is found, once for each connection."""
    await target.run(queries.get("refusals", "create_set_aside"))


async def keep_staged(target: StreamSession, stage: Stage) -> None:
    """Let the rows that are staged stay while all others of their table go."""
    await target.run(_compose(stage, "keep_staged"))


async def lock_staged(target: StreamSession, stage: Stage) -> None:
    """Keep others from referring, from now on, to rows that may have to go for a moment."""
    await target.run(_compose(stage, "lock_staged"))


async def set_aside(target: StreamSession, stage: Stage, *, is_compared: bool) -> int:
    """Find what the target refuses, take it off the stages, and return how many that are.

    Whoever collides when way was made for unique values that move is refused, too.

    Args:
        target: In a transaction that passes the fence, with nothing of this table written.
        stage: The table, with its keys and rows staged.
        is_compared: Whether all keys that stay are staged, and all others go.

    """
    make_way = stage.make_way(is_sparing=True)
    found = await _search(target, stage, make_way, is_compared=is_compared, is_kept=False)
    if found.refused:
        await _take_off(target, stage)
    return found.refused


async def write_singly(
    target: StreamSession, stage: Stage, *, is_compared: bool, is_making_way: bool
) -> Searched:
    """Write row by row what can be written so, and set aside whatever cannot, for any reason.

    Way is to be made only where a search has found that then nothing is refused: a row that was
    taken off to make way, and is refused, would be gone.
    """
    make_way: Sequence[str] = ()
    if is_making_way:
        await lock_staged(target, stage)
        make_way = stage.make_way(is_sparing=True)
    found = await _search(target, stage, make_way, is_compared=is_compared, is_kept=True)
    await _take_off(target, stage)
    return found


async def settle(target: StreamSession, stage: Stage, *, is_compared: bool) -> int:
    """Put into quarantine what was set aside, take out what was brought; return how many are new.

    Args:
        target: In the transaction that has applied the table.
        stage: The table as `apply` has left it: what is still staged was brought.
        is_compared: Whether the rows of all keys that are not staged are gone.

    """
    is_stranger = sql.SQL("OR NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
        _all_keys(stage), _refused_match(stage)
    )
    statement = _compose(stage, "settle_quarantine", is_stranger if is_compared else sql.SQL(""))
    (settled,) = await target.fetch(statement)
    if settled["rows"]:
        await target.run(queries.get("refusals", "clear_set_aside"))
    return int(settled["new_rows"])


async def _search(
    target: StreamSession,
    stage: Stage,
    make_way: Sequence[str],
    *,
    is_compared: bool,
    is_kept: bool,
) -> Searched:
    deleted = _COUNT.format("deleted")
    block = queries.compose(
        "refusals",
        "write_singly",
        table=stage.map.target.name.sql,
        row_stage=sql.Identifier(SCHEMA, stage.rows),
        delete_gone=sql.SQL(_compose(stage, "delete_gone")),
        delete_strangers=sql.SQL(f"{_compose(stage, 'delete_strangers')}; {deleted}")
        if is_compared
        else _NOTHING,
        target_key=sql.SQL(", ").join(sql.Identifier("t", name) for name in stage.map.key),
        is_to_go=_is_to_go(stage, is_compared=is_compared),
        one_match=_one_match(stage),
        one_key=_json(stage.map.key, "one"),
        staged_json=_json(stage.map.key, "s"),
        make_way=sql.SQL("; ".join(make_way) or "NULL"),
        delete_misfit=_about_one(stage, "delete_misfit", stage.misfitting),
        update_one=_about_one(stage, "update_one", stage.updated),
        columns=sql.SQL(", ").join(sql.Identifier(pair.name) for pair in stage.map.copied),
        one_values=sql.SQL(", ").join(
            sql.Identifier("one", pair.name) for pair in stage.map.copied
        ),
        passes=sql.Literal(_MAX_PASSES),
        undo=_NOTHING if is_kept else _UNDO,
    )
    await target.run(block)
    (found,) = await target.fetch(queries.get("refusals", "count_new"))
    return Searched(found["refused"], found["written"], found["deleted"])


def _about_one(stage: Stage, block: str, names: Sequence[str]) -> sql.SQL:
    """Return a statement about the one row in hand; nothing where it is about no column."""
    if not names:
        return _NOTHING
    parts: dict[str, sql.Composable] = {
        "table": stage.map.target.name.sql,
        "one_match": _one_match(stage),
        "differs": stage.differs(names, "one"),
    }
    if block == "delete_misfit":
        return sql.SQL(queries.compose("refusals", block, **parts))
    text = queries.compose("refusals", block, **parts, assignments=stage.assignments("one"))
    return sql.SQL(f"{text}; {_COUNT.format('written')}")


def _one_match(stage: Stage) -> sql.Composed:
    return match(stage.map.target, "t", "one", stage.map.key)


async def _take_off(target: StreamSession, stage: Stage) -> None:
    for block in ("take_rows", "take_keys", "keep_refused", "close_search"):
        await target.run(_compose(stage, block))


def _compose(stage: Stage, block: str, or_is_stranger: sql.Composable = _NOTHING) -> str:
    """Return a block of refusals.sql about one table."""
    key, names = stage.map.key, [pair.name for pair in stage.map.copied]
    parts: dict[str, Callable[[], sql.Composable]] = {
        "table": lambda: stage.map.target.name.sql,
        "name": lambda: sql.Literal(str(stage.map.target.name)),
        "key_stage": lambda: sql.Identifier(SCHEMA, stage.keys),
        "row_stage": lambda: sql.Identifier(SCHEMA, stage.rows),
        "all_keys": lambda: _all_keys(stage),
        "key": lambda: sql.SQL(", ").join(map(sql.Identifier, key)),
        "staged_key": lambda: sql.SQL(", ").join(sql.Identifier("s", name) for name in key),
        "match": lambda: match(stage.map.target, "t", "s", key),
        "key_match": lambda: match(stage.map.target, "t", "k", key),
        "refused_match": lambda: _refused_match(stage),
        "refused_key": lambda: sql.SQL(", ").join(key_value(stage.map, "c", name) for name in key),
        "names": lambda: sql.SQL(", ").join(map(sql.Literal, names)),
        "texts": lambda: _texts(names, "s"),
        "again": lambda: _same_key(stage, lambda name: key_value(stage.map, "a", name)),
        "or_is_stranger": lambda: or_is_stranger,
    }
    text = queries.get("refusals", block)
    used = {name: part() for name, part in parts.items() if f"{{{name}}}" in text}
    return queries.compose("refusals", block, **used)


def _all_keys(stage: Stage) -> sql.Identifier:
    return sql.Identifier(SCHEMA, stage.all_keys)


def _refused_match(stage: Stage) -> sql.Composed:
    """Return the condition that a staged key under `s` is the one that `c` has as JSON."""
    return _same_key(stage, lambda name: sql.Identifier("s", name))


def _same_key(stage: Stage, value: Callable[[str], sql.Composable]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(value(name), key_value(stage.map, "c", name))
        if (column := stage.map.target.column(name)) is None
        else column.is_same(value(name), key_value(stage.map, "c", name))
        for name in stage.map.key
    )


def _is_to_go(stage: Stage, *, is_compared: bool) -> sql.Composed:
    """Return the condition for rows of the target, under `t`, that have to be deleted."""
    is_gone = sql.SQL(
        "EXISTS (SELECT FROM {} AS k WHERE {}) AND NOT EXISTS (SELECT FROM {} AS s WHERE {})"
    ).format(
        sql.Identifier(SCHEMA, stage.keys),
        match(stage.map.target, "t", "k", stage.map.key),
        sql.Identifier(SCHEMA, stage.rows),
        match(stage.map.target, "t", "s", stage.map.key),
    )
    if not is_compared:
        return is_gone
    return sql.SQL("({}) OR NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
        is_gone, _all_keys(stage), match(stage.map.target, "t", "s", stage.map.key)
    )


def _texts(names: Sequence[str], alias: str) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(alias, name)) for name in names
    )


def _json(names: Sequence[str], alias: str) -> sql.Composed:
    """Return some columns of a row as a JSON object of texts."""
    return sql.SQL("jsonb_object(ARRAY[{}]::text[], ARRAY[{}]::text[])").format(
        sql.SQL(", ").join(map(sql.Literal, names)), _texts(names, alias)
    )
