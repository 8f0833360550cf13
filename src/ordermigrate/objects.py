"""Objects: a list of what a family's schema has to have, and which of it a database has.

A list is a text with one object a line: `kind schema.name`, and `on schema.table` for what belongs
to a table. Columns, constraints, triggers and policies have no schema of their own. `#` begins a
comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ordermigrate.control import Session
from ordermigrate.errors import UsageError
from ordermigrate.model import TableName

FILE = "objects.txt"
_IN_A_SCHEMA = {
    "table",
    "partition",
    "index",
    "sequence",
    "view",
    "matview",
    "function",
    "type",
}
_ON_A_TABLE = {"column", "constraint", "trigger", "policy"}
_ALONE = {"extension", "schema", "role"}
_MAY_BE_ON = {"index", "partition"}


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list."""

    kind: str
    name: str
    schema: str | None = None
    table: TableName | None = None

    def __str__(self) -> str:
        """Write it as the list does."""
        named = str(TableName(self.schema, self.name)) if self.schema else self.name
        return f"{self.kind} {named}" + (f" on {self.table}" if self.table else "")


@dataclass(frozen=True, slots=True)
class Looked:
    """An object, and whether it is there."""

    object: Listed
    is_there: bool


def read_list(path: Path) -> list[Listed]:
    """Read a list of objects.

    Raises:
        UsageError: There is no such file, or a line of it is none.

    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The list of objects {path} cannot be read: "
            f"{error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}",
            wanted="A text with a line for each object, such as `table public.orders`",
            todo="Name another with --objects FILE",
        ) from None
    found: list[Listed] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                found.append(parse_line(text))
            except ValueError as error:
                raise UsageError(
                    f"Line {number} of {path} is no object: {error}",
                    wanted="kind schema.name, and `on schema.table` for what belongs to a table",
                    todo="Correct the line",
                ) from None
    return found


def parse_line(text: str) -> Listed:
    """Read one line.

    Raises:
        ValueError: It is none.

    """
    kind, _, rest = text.partition(" ")
    name, _, on = (part.strip() for part in rest.partition(" on "))
    known = sorted(_IN_A_SCHEMA | _ON_A_TABLE | _ALONE)
    if kind not in known:
        message = f"{kind!r} is none of {', '.join(known)}"
        raise ValueError(message)
    has_place = bool(on) is (kind in _ON_A_TABLE) or (bool(on) and kind in _MAY_BE_ON)
    if not name or not has_place:
        message = f"{text!r}: a {kind} is written as `{kind} " + (
            "name on schema.table`" if kind in _ON_A_TABLE else "name` alone"
        )
        raise ValueError(message)
    table = TableName.parse(on) if on else None
    if kind in _IN_A_SCHEMA:
        whole = TableName.parse(name)
        return Listed(kind, whole.name, whole.schema, table)
    # Read as the name of a table is, so that quotes mean the same.
    return Listed(kind, TableName.parse(f"public.{name}").name, None, table)


async def look(session: Session, listed: Sequence[Listed]) -> list[Looked]:
    """Look for each of the listed objects."""
    rows = await session.fetch_all(
        "objects",
        "find_objects",
        [each.kind for each in listed],
        [each.schema for each in listed],
        [each.name for each in listed],
        [str(each.table) if each.table else None for each in listed],
    )
    return [Looked(each, row.is_there) for each, row in zip(listed, rows, strict=True)]
