"""Two operators at once: the lock keeps the second out, and the rows do where the lock is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from ordermigrate import bulk_copy, copying, ledger, migration
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Busy
from ordermigrate.model import TableMap
from ordermigrate.phases import Phase
from tests.fix_postgres import execute
from tests.integration.ground import Heard, make_config

CREATE = "CREATE TABLE public.t (id integer PRIMARY KEY, v text);"
ROWS = "INSERT INTO public.t SELECT g, 'x' FROM generate_series(1, 100) AS g"
LOCK_HOLDERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def config(monolith_dsn: str, service_dsn: str) -> Config:
    execute(monolith_dsn, CREATE + ROWS)
    execute(service_dsn, CREATE)
    return make_config(monolith_dsn, service_dsn, "public.t")


Act = Callable[[], Awaitable[None]]
Arrange = Callable[[Act], None]


@pytest.fixture
def before_the_end(monkeypatch: pytest.MonkeyPatch) -> Arrange:
    """Let something happen once, when a copy has proved its rows and built its indexes."""
    check = copying._require_same_source

    def arrange(act: Act) -> None:
        async def act_and_check(monolith: Session, service: Session, maps: list[TableMap]) -> None:
            monkeypatch.setattr(copying, "_require_same_source", check)
            await act()
            await check(monolith, service, maps)

        monkeypatch.setattr(copying, "_require_same_source", act_and_check)

    return arrange


async def test_a_second_operator_is_kept_out_until_the_last_index_is_built(
    config: Config, before_the_end: Arrange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "OPERATOR_LOCK_SECONDS", 0.0)

    async def come_second() -> None:
        with pytest.raises(Busy, match="at work"):
            await migration.copy(config, Heard(), is_restart=True)

    before_the_end(come_second)
    done = await migration.copy(config, Heard())
    assert done.phase is Phase.COPIED


async def test_a_copy_that_was_begun_anew_meanwhile_is_not_called_complete(
    config: Config,
    before_the_end: Arrange,
    monkeypatch: pytest.MonkeyPatch,
    service_dsn: str,
) -> None:
    async def stop(_: object) -> None:
        raise ZeroDivisionError

    async def begin_anew() -> None:
        # The first one's lock goes with its session; the second dies before its first chunk.
        execute(service_dsn, LOCK_HOLDERS)
        with monkeypatch.context() as patch:
            patch.setattr(bulk_copy, "_copy_chunks", stop)
            with pytest.raises(ZeroDivisionError):
                await migration.copy(config, Heard(), is_restart=True)

    before_the_end(begin_anew)
    with pytest.raises(Busy, match="while this command was at work"):
        await migration.copy(config, Heard())
    assert (await migration.status(config)).phase is Phase.COPYING
    assert (await migration.copy(config, Heard())).phase is Phase.COPIED
    assert execute(service_dsn, "SELECT count(*) FROM public.t") == [(100,)]
