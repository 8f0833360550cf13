"""The demo's two databases: on servers of its own, or on two that somebody lends it.

Promise: nothing that was there before is touched. Lent servers are named by variables of the
demo's own, never by those of a real migration, and get databases with names that nobody else
has; these are dropped at the end. Servers of the demo's own end with it, data and all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate import config as configuration
from ordermigrate import db
from ordermigrate.config import Config
from ordermigrate.demo import servers
from ordermigrate.errors import UsageError
from ordermigrate.families import find_family
from ordermigrate.model import Identity, Side

FAMILY = "hub_orders"
VARIABLES: Mapping[Side, str] = {
    Side.MONOLITH: "ORDERMIGRATE_DEMO_MONOLITH_DSN",
    Side.SERVICE: "ORDERMIGRATE_DEMO_SERVICE_DSN",
}
OWN_NAMES: Mapping[Side, str] = {
    Side.MONOLITH: "hub_investments",
    Side.SERVICE: "hub_order_service",
}
# Small chunks, so that even a small copy has several, and a server that is down is told of soon.
_LIMITS: Mapping[str, object] = {"chunk_mib": 8, "retry_deadline_seconds": 5}


@dataclass(frozen=True, slots=True)
class Databases:
    """Two empty databases that are the demo's alone.

    Attributes:
        config: A migration's configuration that leads to them.
        dsns: What an operator can be shown of each DSN: with its password only where that is
            one of ours, made for this run.
        are_lent: Whether the servers are somebody else's.
        identities: What each server says of itself.
        seconds: How long it took to have them.

    """

    config: Config
    dsns: Mapping[Side, str]
    are_lent: bool
    identities: Mapping[Side, Identity]
    seconds: float

    @property
    def writers_dsns(self) -> Mapping[Side, str]:
        """How an application reaches them."""
        return {side: self.config.dsn(side) for side in Side}


def make_config(dsns: Mapping[Side, str]) -> Config:
    """Return the family's own configuration, with these databases and the demo's limits."""
    folder = find_family(FAMILY)
    if folder is None:
        message = f"the family {FAMILY} is not part of this installation"
        raise AssertionError(message)
    variables = {configuration.DSN_VARIABLES[side]: dsn for side, dsn in dsns.items()}
    return configuration.load(folder / "ordermigrate.toml", variables, **_LIMITS)


def find_lent(environ: Mapping[str, str]) -> Mapping[Side, str]:
    """Return the DSNs of servers that somebody lends us; empty where there are none.

    Raises:
        UsageError: Only one of the two variables is set, or a DSN cannot be parsed.

    """
    lent = {side: environ.get(variable, "").strip() for side, variable in VARIABLES.items()}
    if not any(lent.values()):
        return {}
    if not all(lent.values()):
        missing = next(VARIABLES[side] for side, dsn in lent.items() if not dsn)
        raise UsageError(
            f"{missing} is not set, but its counterpart is",
            wanted="Two servers for the demo, or none",
            todo="Set both variables, or neither: then the demo starts two servers of its own",
        )
    for side, dsn in lent.items():
        db.check_dsn(side, dsn)
    return lent


@contextlib.asynccontextmanager
async def open_databases(lent: Mapping[Side, str]) -> AsyncIterator[Databases]:
    """Provide two empty databases for the length of a block, on lent servers or on our own.

    Raises:
        Unavailable: There is no PostgreSQL to be had, or a lent server cannot be reached.

    """
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        if lent:
            dsns = await stack.enter_async_context(_on_lent_servers(lent))
            shown = {side: _without_secrets(dsn) for side, dsn in dsns.items()}
        else:
            dsns = await stack.enter_async_context(_on_own_servers())
            shown = dsns
        config = make_config(dsns)
        identities = {}
        for side in Side:
            session = await db.connect(config, side, "demo")
            identities[side] = session.identity
            await session.close()
        yield Databases(config, shown, bool(lent), identities, time.monotonic() - started)


@contextlib.asynccontextmanager
async def _on_own_servers() -> AsyncIterator[dict[Side, str]]:
    # libpq would let PGHOSTADDR, PGSSLMODE or PGOPTIONS lead us elsewhere, or shut us out.
    for variable in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[variable]
    with servers.two_servers() as two:
        running = {Side.MONOLITH: two.monolith, Side.SERVICE: two.service}
        config = make_config({side: server.dsn() for side, server in running.items()})
        for side, name in OWN_NAMES.items():
            await _run(config, side, "create_database", name)
        yield {side: server.dsn(OWN_NAMES[side]) for side, server in running.items()}


@contextlib.asynccontextmanager
async def _on_lent_servers(lent: Mapping[Side, str]) -> AsyncIterator[dict[Side, str]]:
    config = make_config(lent)
    mark = secrets.token_hex(4)
    names = {side: f"ordermigrate_demo_{mark}_{side}" for side in Side}
    async with contextlib.AsyncExitStack() as stack:
        for side, name in names.items():
            # Before it is there: an interruption may come while the server is at it.
            stack.push_async_callback(_run, config, side, "drop_database", name)
            await _run(config, side, "create_database", name)
        yield {side: make_conninfo(lent[side], dbname=name) for side, name in names.items()}


def _without_secrets(dsn: str) -> str:
    known = conninfo_to_dict(dsn).items()
    return make_conninfo("", **{key: value for key, value in known if "password" not in key})


async def _run(config: Config, side: Side, block: str, database: str) -> None:
    session = await db.connect(config, side, "demo")
    try:
        await session.fetch_all("story", block, database=sql.Identifier(database))
    finally:
        await session.close()
