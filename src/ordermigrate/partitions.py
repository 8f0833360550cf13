"""Partitions that staged rows would need on the cold side, and how wide they have to be.

A new one begins where a neighbour ends, or a whole number of its widths further on, and is as wide
as it: months stay months, whatever their length. That can be told for ranges of one column that
holds times or whole numbers; of all others it is only said that a partition is missing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import sql

from ordermigrate import queries
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Side, TableName
from ordermigrate.stages import SCHEMA, Stage
from ordermigrate.stream_sessions import StreamSession

# A row that no partition takes is refused as one that breaks a CHECK.
SQLSTATE = "23514"
DEFAULT = "DEFAULT"
_BOUND = re.compile(r"FOR VALUES FROM \('?(.*?)'?\) TO \('?(.*?)'?\)\Z")
_NUMBERS = {"smallint", "integer", "bigint"}
_TIMES = {"date", "timestamp without time zone", "timestamp with time zone"}
_MOST_STEPS = 100_000
_MONTHS_OF_A_YEAR = 12
_NAME_BYTES = 63
# Of one table all are moments or all are numbers; None stands for no end.
Point = Any
Range = tuple[Point, Point]


@dataclass(frozen=True, slots=True)
class Months:
    """A width that is no fixed time."""

    count: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Values that no partition takes, and the partitions that would, where that can be told."""

    table: TableName
    column: str
    values: tuple[str, ...]
    statements: tuple[tuple[TableName, str], ...]
    owner: str

    def explain(self, side: Side) -> Refused:
        """Return the refusal that names table, value and the DDL to run."""
        more = f" and {len(self.values) - 1} others" if len(self.values) > 1 else ""
        ddl = "; ".join(text for _, text in self.statements)
        todo = f"Run on the {side}: {ddl}" if ddl else "Create one for it on the " + side
        return Refused(
            f"No partition of {self.table} on the {side} takes {self.column} = "
            f"{self.values[0]}{more}",
            wanted="A partition for every row that comes",
            todo=f'{todo}; or set missing_partition = "create" for the table. Then run the command '
            "again: nothing of this round was kept, nothing is lost",
        )


async def find_missing(target: StreamSession, stage: Stage) -> Missing | None:
    """Find the staged rows that no partition of their table takes; None where there are none.

    Args:
        target: In a transaction in which the rows are staged.
        stage: The table.

    """
    table = stage.map.target
    if not table.is_partitioned:
        return None
    found = await target.fetch(queries.get("partitions", "read_parts"), table.oid)
    names = {pair.name for pair in stage.map.copied}
    if not found or found[0]["column_name"] not in names:
        return None
    parts = [each for each in found if each["bound"] is not None]
    if any(each["bound"] == DEFAULT for each in parts):
        return None
    column, type_name = found[0]["column_name"], found[0]["type_name"]
    rows = await target.fetch(
        queries.compose(
            "partitions",
            "find_homeless",
            column=sql.Identifier(column),
            row_stage=sql.Identifier(SCHEMA, stage.rows),
            taken=sql.SQL(" OR ".join(f"({each['condition']})" for each in parts) or "false"),
        )
    )
    values = [each["value"] for each in rows]
    if not values:
        return None
    made = plan(type_name, [each["bound"] for each in parts], values)
    statements: list[tuple[TableName, str]] = []
    for lower, upper in made:
        name = _name(table.name, lower, upper)
        text = queries.compose(
            "partitions",
            "create_part",
            part=name.sql,
            table=table.name.sql,
            lower=_literal(type_name, lower),
            upper=_literal(type_name, upper),
        )
        statements.append((name, text))
    return Missing(table.name, column, tuple(values), tuple(statements), found[0]["owner"])


async def create(session: Session, missing: Missing) -> list[str]:
    """Create the partitions, empty, and return what was done in sentences."""
    async with session.transaction():
        for name, text in missing.statements:
            await session.run(text)
            await session.fetch_all(
                "partitions", "give_part", part=name.sql, owner=sql.Identifier(missing.owner)
            )
    return [
        f"{name} was created for rows with {missing.column} from {missing.values[0]} on"
        for name, _ in missing.statements
    ]


def plan(type_name: str, bounds: Sequence[str], values: Sequence[str]) -> list[Range]:
    """Return the ranges that have to be added to some so that every value is in one.

    None at all where that cannot be told: for another type, without a neighbour, too far from it.
    """
    try:
        known = [_parse_bound(type_name, text) for text in bounds]
        points = sorted({_parse(type_name, text) for text in values})
    except ValueError:
        return []  # a type, or a moment, that is not reckoned with here
    made: list[Range] = []
    for point in points:
        if any(lower <= point < upper for lower, upper in made):
            continue
        try:
            covering = _cover(point, [*known, *made])
        except (ValueError, OverflowError):  # beyond the years that there are
            covering = None
        if covering is None:
            return []
        made.append(covering)
    return made


def _parse(type_name: str, text: str) -> Point:
    if type_name in _NUMBERS:
        return int(text)
    if type_name in _TIMES:
        return datetime.fromisoformat(text)
    message = f"no width is known for {type_name}"
    raise ValueError(message)


def _parse_bound(type_name: str, text: str) -> Range:
    match = _BOUND.search(text)
    if match is None:
        message = f"{text} is no range"
        raise ValueError(message)
    lower, upper = (
        None if each in {"MINVALUE", "MAXVALUE"} else _parse(type_name, each)
        for each in match.groups()
    )
    return lower, upper


def _cover(point: Point, known: Sequence[Range]) -> Range | None:
    """Return a range around a point, as wide as its neighbour and in step with it."""
    before = [each for each in known if each[1] is not None and each[1] <= point]
    after = [each for each in known if each[0] is not None and each[0] > point]
    below = max(before, key=lambda one: one[1], default=None)
    above = min(after, key=lambda one: one[0], default=None)
    if below is not None and below[0] is not None:
        width = _find_width(below)
        lower, upper = below[1], _step(below[1], width)
        for _ in range(_MOST_STEPS):
            if point < upper:
                return lower, upper if above is None else min(upper, above[0])
            lower, upper = upper, _step(upper, width)
    elif above is not None and above[1] is not None:
        width = _find_width(above)
        lower, upper = _step(above[0], width, -1), above[0]
        for _ in range(_MOST_STEPS):
            if lower <= point:
                return lower if below is None else max(lower, below[1]), upper
            lower, upper = _step(lower, width, -1), lower
    return None


def _find_width(known: Range) -> Any:  # noqa: ANN401  months, or what one point is from another
    lower, upper = known
    if isinstance(lower, datetime) and all(each == _month_of(each) for each in known):
        return Months((upper.year - lower.year) * _MONTHS_OF_A_YEAR + upper.month - lower.month)
    return upper - lower


def _month_of(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _step(point: Point, width: Any, ways: int = 1) -> Point:  # noqa: ANN401  see _find_width
    if isinstance(width, Months):
        months = point.year * _MONTHS_OF_A_YEAR + point.month - 1 + ways * width.count
        year, month = divmod(months, _MONTHS_OF_A_YEAR)
        return point.replace(year=year, month=month + 1)
    return point + ways * width


def _literal(type_name: str, point: Point) -> sql.Literal:
    if isinstance(point, datetime):
        day: date = point.date()
        return sql.Literal(str(day) if type_name == "date" else point.isoformat(sep=" "))
    return sql.Literal(point)


def _name(table: TableName, lower: Point, upper: Point) -> TableName:
    if not isinstance(lower, datetime) or not isinstance(upper, datetime):
        suffix = str(lower).replace("-", "minus_")
    else:
        width = _find_width((lower, upper))
        is_month = isinstance(width, Months)
        is_year = is_month and width == Months(_MONTHS_OF_A_YEAR)
        suffix = lower.strftime("%Y" if is_year else "%Y_%m" if is_month else "%Y_%m_%d")
        if lower.time() != datetime.min.time():
            suffix = lower.strftime("%Y_%m_%d_%H%M%S")
    stem = table.name.encode()[: _NAME_BYTES - len(suffix) - 1].decode("utf-8", "ignore")
    return TableName(table.schema, f"{stem}_{suffix}")
