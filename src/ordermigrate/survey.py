"""A survey: both databases as preflight sees them, each fact read once and for all its checks.

It only reads: its sessions refuse to write, and no table is kept locked. What cannot be read is an
error for every check that wants it, and for no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ordermigrate import catalog, mapping
from ordermigrate.catalog import Presence
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable
from ordermigrate.mapping import Misfit
from ordermigrate.model import Side, Table, TableMap, TableName

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Part:
    """A table of the family, or what inherits from one: a partition, or a child."""

    oid: int
    name: TableName
    root: TableName
    is_partition: bool
    is_root: bool


class Survey:
    """What preflight has to look at, and what it has read of it so far."""

    def __init__(
        self,
        config: Config,
        sessions: Mapping[Side, Session | OrdermigrateError],
        faults: Mapping[Side, Sequence[Refused]],
    ) -> None:
        self.config = config
        self.faults = faults
        self._sessions = sessions
        self._known: dict[tuple[str, Side | None], object] = {}

    def find_lost(self, side: Side) -> OrdermigrateError | None:
        """Return why a side could not be reached, if it could not."""
        found = self._sessions[side]
        return found if isinstance(found, OrdermigrateError) else None

    def session(self, side: Side) -> Session:
        """Return the session on a side.

        Raises:
            Unavailable: There is none.

        """
        found = self._sessions[side]
        if isinstance(found, OrdermigrateError):
            raise Unavailable(f"The {side} was not reached")
        return found

    def names(self, side: Side) -> list[TableName]:
        """Return the family's names on a side."""
        is_monolith = side is Side.MONOLITH
        return [each.name if is_monolith else each.target for each in self.config.tables]

    async def presences(self, side: Side) -> list[Presence]:
        """Tell of each table whether it is there, and what we may do with it."""
        names, session = self.names(side), self.session(side)
        return await self.once("presences", side, lambda: catalog.find_tables(session, names))

    async def tables(self, side: Side) -> dict[TableName, Table]:
        """Describe the tables that are there and can be read."""
        return await self.once("tables", side, lambda: self._read_tables(side))

    async def _read_tables(self, side: Side) -> dict[TableName, Table]:
        names = [
            each.name
            for each in await self.presences(side)
            if each.kind in {"r", "p"} and each.can_enter and each.can_select
        ]
        return await catalog.read_tables(self.session(side), names)

    async def parts(self, side: Side) -> list[Part]:
        """Return the tables that are there, with all that inherits from them."""
        return await self.once("parts", side, lambda: self._read_parts(side))

    async def _read_parts(self, side: Side) -> list[Part]:
        oids = [each.oid for each in await self.presences(side) if each.oid is not None]
        return [
            Part(
                row.oid,
                TableName(row.schema_name, row.table_name),
                TableName(row.root_schema, row.root_name),
                row.is_partition,
                row.is_root,
            )
            for row in await self.session(side).fetch_all("survey", "read_parts", oids)
        ]

    async def fetch_parts(self, side: Side, module: str, block: str, *values: object) -> list[Any]:
        """Run a block whose $1 is the oids of the family's tables and their parts."""
        oids = [part.oid for part in await self.parts(side)]
        return await self.session(side).fetch_all(module, block, oids, *values)

    async def fit(self) -> tuple[list[TableMap], list[Misfit]]:
        """Pair the tables that are there on both sides, and return what does not fit."""
        return await self.once("fit", None, self._fit)

    async def _fit(self) -> tuple[list[TableMap], list[Misfit]]:
        sources, targets = await self.tables(Side.MONOLITH), await self.tables(Side.SERVICE)
        pairs = [
            each for each in self.config.tables if each.name in sources and each.target in targets
        ]
        return mapping.fit_tables(pairs, sources, targets)

    async def once(self, what: str, side: Side | None, read: Callable[[], Awaitable[_T]]) -> _T:
        """Return what `read` has given the first time that this was asked, an error too."""
        key = (what, side)
        if key not in self._known:
            try:
                self._known[key] = await read()
            except OrdermigrateError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, OrdermigrateError):
            raise found
        return cast("_T", found)
