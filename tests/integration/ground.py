"""What tests of single modules stand on: a configuration, sessions, tables of a catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager

from ordermigrate import catalog, db, ledger, locks, mapping, sides
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.model import Side, Table, TableMap, TableName
from ordermigrate.progress import Event

RUN = "11111111-2222-3333-4444-555555555555"


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        self.events.append(event)


def make_config(
    monolith: str,
    service: str,
    /,
    *tables: Mapping[str, object] | str,
    **limits: object,
) -> Config:
    """Return a configuration; a table may be given by its name alone."""
    family = [{"name": table} if isinstance(table, str) else dict(table) for table in tables]
    return Config.model_validate(
        {
            "monolith": {"dsn": monolith},
            "service": {"dsn": service},
            "tables": family or [{"name": "public.t"}],
            "limits": {"retry_deadline_seconds": 0, **limits},
        }
    )


@asynccontextmanager
async def opened(dsn: str, side: Side = Side.MONOLITH, **limits: object) -> AsyncIterator[Session]:
    """Open one control session."""
    session = await db.connect(make_config(dsn, dsn, **limits), side, "test")
    try:
        yield session
    finally:
        await session.close()


async def read_tables(session: Session, *names: str) -> list[Table]:
    """Describe tables as the program does: locked, in one snapshot."""
    listed = [TableName.parse(name) for name in names or ("public.t",)]
    async with locks.locked_snapshot(session, listed):
        found = await catalog.read_tables(session, listed)
    return [found[name] for name in listed]


async def read_maps(
    monolith: Session, service: Session, *tables: Mapping[str, object] | str
) -> list[TableMap]:
    """Pair the tables of both sides."""
    family: Sequence[Mapping[str, object] | str] = tables or ("public.t",)
    configured = make_config("", "", *family).tables
    source = await read_tables(monolith, *(str(each.name) for each in configured))
    target = await read_tables(service, *(str(each.target) for each in configured))
    return mapping.build_maps(
        configured, {each.name: each for each in source}, {each.name: each for each in target}
    )


async def install(monolith: Session, service: Session) -> None:
    """Put our schema into both databases, as `prepare` does."""
    async with service.transaction():
        await sides.install(service, RUN, is_hot=False)
        await ledger.install(service, RUN, "0", monolith.identity)
    async with monolith.transaction():
        await sides.install(monolith, RUN, is_hot=True)


async def fail_inside(session: Session, act: Coroutine[object, object, object]) -> None:
    """Do something in a transaction that then fails."""
    async with session.transaction():
        await act
        raise ZeroDivisionError
