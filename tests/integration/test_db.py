"""Sessions of ours are the same everywhere, whatever a server, a database or a role prefers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import traceback
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate import control, db, sessions, streams
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.model import Side
from ordermigrate.sqlstates import ConnectionLost
from tests.fix_faults import FaultProxy
from tests.fix_postgres import StartServer, TestServers, execute
from tests.integration.ground import fail_inside, make_config, opened

MakeProxy = Callable[[str], FaultProxy]
HOSTILE = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "xmloption": "document",
    "search_path": "mean, public",
    "statement_timeout": "200ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "100ms",
    "idle_session_timeout": "100ms",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "jit": "on",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "client_encoding": "LATIN1",
    "synchronous_commit": "off",
}


@pytest.fixture
async def session(monolith_dsn: str) -> AsyncIterator[Session]:
    async with opened(monolith_dsn) as found:
        yield found


async def show(session: Session, name: str) -> str:
    return str((await session.run(f"SELECT current_setting('{name}') AS value"))[0].value)


async def show_stream(session: Session, *names: str) -> dict[str, str]:
    connection = await streams.connect(session.route)
    try:
        return {
            name: await connection.fetchval("SELECT current_setting($1)", name) for name in names
        }
    finally:
        connection.terminate()


@pytest.fixture
def hostile(postgres_servers: TestServers, monolith_dsn: str) -> Iterator[str]:
    """A role whose every session begins with settings that change what values look like."""
    name = f"hostile_{secrets.token_hex(4)}"
    password = secrets.token_hex(8)
    names = {
        "role": sql.Identifier(name),
        "database": sql.Identifier(str(conninfo_to_dict(monolith_dsn)["dbname"])),
    }

    def run(statement: str) -> None:
        postgres_servers.monolith.run(sql.SQL(statement).format(**names))

    run(f"CREATE ROLE {{role}} LOGIN PASSWORD '{password}'")
    run("GRANT CREATE ON DATABASE {database} TO {role}")
    for number, (key, value) in enumerate(HOSTILE.items()):
        where = "ROLE {role}" if number % 2 else "DATABASE {database}"
        wanted = value if "," in value else f"'{value}'"
        run(f"ALTER {where} SET {key} = {wanted}")
    yield make_conninfo(monolith_dsn, user=name, password=password)
    for key in HOSTILE:
        run(f"ALTER DATABASE {{database}} RESET {key}")
    execute(monolith_dsn, sql.SQL("DROP OWNED BY {role}").format(**names))
    run("DROP ROLE {role}")


async def test_our_settings_hold_against_those_of_a_role_and_a_database(hostile: str) -> None:
    with psycopg.connect(hostile) as plain:
        assert plain.execute("SHOW TimeZone").fetchone() == ("Asia/Kathmandu",)
    others = {name for name in HOSTILE if "timeout" in name} | {"synchronous_commit"}
    assert sessions.MEANING_OF_VALUES.keys() >= HOSTILE.keys() - others
    async with opened(hostile) as session:
        streamed = await show_stream(session, *sessions.MEANING_OF_VALUES)
        for name, wanted in sessions.MEANING_OF_VALUES.items():
            assert (await show(session, name)).replace('"', "") == wanted, name
            assert streamed[name].replace('"', "") == wanted, name


async def test_a_hostile_roles_timeouts_do_not_end_our_statements(hostile: str) -> None:
    async with opened(hostile) as session:
        await session.run("SELECT pg_sleep(0.3)")
        async with session.transaction():
            await session.run("SELECT 1")
            await asyncio.sleep(0.3)
            await session.run("CREATE SCHEMA mine")  # nor is it read only
        await asyncio.sleep(0.3)
        assert await show(session, "idle_session_timeout") == "0"
        assert await show(session, "statement_timeout") == "30s"


@pytest.mark.parametrize(
    ("default", "kept"),
    [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
async def test_commits_are_durable_and_a_stronger_default_stays(
    monolith_dsn: str, default: str, kept: str
) -> None:
    name = str(conninfo_to_dict(monolith_dsn)["dbname"])
    execute(
        monolith_dsn,
        sql.SQL("ALTER DATABASE {} SET synchronous_commit = {}").format(
            sql.Identifier(name), sql.Literal(default)
        ),
    )
    async with opened(monolith_dsn) as session:
        assert await show(session, "synchronous_commit") == kept
        assert (await show_stream(session, "synchronous_commit"))["synchronous_commit"] == kept


async def test_our_sessions_can_be_told_in_pg_stat_activity(session: Session) -> None:
    assert await show(session, "application_name") == "ordermigrate test"


# ------------------------------------------------------------------------------------- identity


async def test_a_database_is_told_by_what_it_is(session: Session, monolith_dsn: str) -> None:
    ((name, oid, version, system),) = execute(
        monolith_dsn,
        "SELECT current_database(), oid::bigint, current_setting('server_version_num')::int, "
        "(SELECT system_identifier FROM pg_control_system()) "
        "FROM pg_database WHERE datname = current_database()",
    )
    found = session.identity
    assert (found.database, found.database_oid, found.server_version) == (name, oid, version)
    assert (found.encoding, found.is_in_recovery) == ("UTF8", False)
    assert (found.system_identifier, found.timeline) == (system, 1)
    assert found.version_text == f"{version // 10000}.{version % 10000}"


async def test_a_server_may_keep_its_control_file_to_itself(
    hostile: str, monolith_dsn: str
) -> None:
    execute(
        monolith_dsn,
        "BEGIN READ WRITE;"
        "REVOKE EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() FROM PUBLIC;"
        "COMMIT",
    )
    async with opened(hostile) as session:
        assert session.identity.system_identifier is None
        assert session.identity.timeline is None


async def test_two_dsns_of_one_database_are_told_however_they_are_written(
    monolith_dsn: str, service_dsn: str
) -> None:
    keywords = make_conninfo("", **conninfo_to_dict(monolith_dsn))
    async with opened(monolith_dsn) as one:
        async with opened(keywords, Side.SERVICE) as other:
            assert await db.is_same_database(one, other)
        async with opened(service_dsn, Side.SERVICE) as other:
            assert not await db.is_same_database(one, other)
            assert not await db.is_same_database(other, one)
    with pytest.raises(UsageError, match="Both DSNs lead to the same database"):
        async with db.open_pair(make_config(monolith_dsn, keywords), "test"):
            pass


async def test_another_database_on_the_same_server_is_another(
    postgres_servers: TestServers, session: Session
) -> None:
    async with opened(postgres_servers.monolith.dsn(), Side.SERVICE) as other:
        assert not await db.is_same_database(session, other)


async def test_the_mark_is_gone_after_the_question(session: Session, monolith_dsn: str) -> None:
    async with opened(monolith_dsn, Side.SERVICE) as other:
        assert await db.is_same_database(session, other)
        left = await other.run(
            "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND pid = $1::int",
            session.pid,
        )
    assert left[0].n == 0


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_may_lose_what_it_committed_is_refused(
    start_server: StartServer, setting: str
) -> None:
    server = start_server(settings={setting: "off"})
    with pytest.raises(Refused, match=f"{setting} is off"):
        async with opened(server.dsn()):
            pass


async def test_a_standby_is_no_service(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    with pytest.raises(Refused, match="standby"):
        async with opened(server.dsn(), Side.SERVICE):
            pass
    async with opened(server.dsn(), Side.MONOLITH) as monolith:
        assert monolith.identity.is_in_recovery


class Pooler:
    """What a pooler looks like from outside: it tells its clients of backends of its own making."""

    def __init__(self, dsn: str) -> None:
        parameters = conninfo_to_dict(dsn)
        self.upstream = (str(parameters["host"]), int(str(parameters["port"])))
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self.upstream)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_told: bool
        ) -> None:
            with contextlib.suppress(OSError):
                while block := await source.read(65536):
                    at = block.find(b"K\0\0\0\x0c") if is_told else -1
                    if at >= 0:
                        pid = int.from_bytes(block[at + 5 : at + 9], "big") + 1
                        block = block[: at + 5] + pid.to_bytes(4, "big") + block[at + 9 :]
                    sink.write(block)
                    await sink.drain()
            sink.close()

        await asyncio.gather(
            pump(reader, to_server, is_told=False), pump(from_server, writer, is_told=True)
        )


@pytest.fixture
async def pooled(monolith_dsn: str) -> AsyncIterator[str]:
    server = await asyncio.start_server(Pooler(monolith_dsn).serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield make_conninfo(monolith_dsn, host="127.0.0.1", port=port, sslmode="disable")
    server.close()
    await asyncio.sleep(0)


async def test_a_pooler_in_between_is_refused_by_both_drivers(
    pooled: str, session: Session
) -> None:
    with pytest.raises(Refused, match="A connection pooler stands between us and the monolith"):
        async with opened(pooled):
            pass
    parameters = conninfo_to_dict(pooled)
    options = {**session.route.options, "port": str(parameters["port"]), "sslmode": "disable"}
    route = streams.Route(Side.MONOLITH, options, session.route.settings, "test", 5)
    with pytest.raises(Refused, match="pooler"):
        await streams.connect(route)


def test_a_setting_that_does_not_hold_is_refused() -> None:
    sessions.check(Side.SERVICE, 7, [("TimeZone", "UTC", 7), ("statement_timeout", "1", 7)])
    with pytest.raises(Refused, match="TimeZone is 'Europe/Paris' although 'UTC' was set"):
        sessions.check(Side.SERVICE, 7, [("TimeZone", "Europe/Paris", 7)])


@pytest.mark.parametrize("dsn", ["postgresql://app:s3cret@[half/db", "host=x password s3cret"])
def test_a_dsn_that_cannot_be_parsed_is_not_repeated(dsn: str) -> None:
    with pytest.raises(UsageError) as refused:
        db.check_dsn(Side.SERVICE, dsn)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


async def test_a_password_is_in_no_picture_of_a_session(
    session: Session, monolith_dsn: str
) -> None:
    password = str(conninfo_to_dict(monolith_dsn)["password"])
    for shown in (repr(session), repr(session.route), str(session.identity)):
        assert password not in shown


# --------------------------------------------------------------------------------- transactions


async def count_words(session: Session) -> int:
    return int((await session.run("SELECT count(*) AS n FROM public.words"))[0].n)


@pytest.fixture
async def words(session: Session) -> Session:
    await session.run("CREATE TABLE public.words (word text)")
    return session


async def test_a_transaction_commits_at_its_end_and_not_before(
    words: Session, monolith_dsn: str
) -> None:
    async with words.transaction():
        await words.run("INSERT INTO public.words VALUES ($1::text)", "one")
        assert execute(monolith_dsn, "SELECT count(*) FROM public.words") == [(0,)]
    assert execute(monolith_dsn, "SELECT word FROM public.words") == [("one",)]


async def test_an_error_inside_rolls_back_and_the_session_goes_on(words: Session) -> None:
    write = words.run("INSERT INTO public.words VALUES ('one')")
    with pytest.raises(ZeroDivisionError):
        await fail_inside(words, write)
    with pytest.raises(OrdermigrateError, match="22012"):
        await words.run("SELECT 1 / 0")
    assert await count_words(words) == 0


async def test_a_cancellation_inside_rolls_back(words: Session, monolith_dsn: str) -> None:
    async def write() -> None:
        async with words.transaction():
            await words.run("INSERT INTO public.words VALUES ('one')")
            await words.run("SELECT pg_sleep(30)")

    task = asyncio.ensure_future(write())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert execute(monolith_dsn, "SELECT count(*) FROM public.words") == [(0,)]
    async with opened(monolith_dsn) as watcher, asyncio.timeout(10):
        while (  # noqa: ASYNC110  no event tells of the end of a backend
            await watcher.fetch_one("sessions", "see_backend", words.pid)
        ).is_alive:
            await asyncio.sleep(0.01)


async def test_values_go_over_as_they_are(session: Session) -> None:
    odd = "100% {x} $1 %s 'it''s' \\ \" é\n"
    row = (await session.run("SELECT $1::text AS value, $2::bigint[] AS list", odd, [1, None]))[0]
    assert (row.value, row.list) == (odd, [1, None])


# ------------------------------------------------------------------------------------- patience


async def test_a_server_that_stalls_is_given_up(
    monolith_dsn: str, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "GRACE_SECONDS", 0.3)
    proxy = make_proxy(monolith_dsn)
    config = make_config(
        proxy.dsn(monolith_dsn), monolith_dsn, monolith={"statement_timeout_seconds": 0.3}
    )
    session = await db.connect(config, Side.MONOLITH, "test")
    proxy.stall()
    with pytest.raises(ConnectionLost, match="has not answered"):
        async with asyncio.timeout(15):  # of which psycopg's own cancellation takes five
            await session.run("SELECT 1")
    with pytest.raises(ConnectionLost):
        await session.run("SELECT 1")
    await session.close()


async def test_a_statement_that_is_too_slow_for_control_is_cancelled_by_the_server(
    monolith_dsn: str,
) -> None:
    async with opened(monolith_dsn, monolith={"statement_timeout_seconds": 0.2}) as session:
        with pytest.raises(OrdermigrateError, match="statement_timeout_seconds"):
            await session.run("SELECT pg_sleep(10)")
        await session.run("SELECT 1")


async def test_a_long_statement_outlives_many_looks(monolith_dsn: str) -> None:
    async with opened(monolith_dsn, stall_timeout_seconds=0.05) as session:
        await session.run("SET statement_timeout = 0")
        (row,) = await session.run_long("SELECT 7 AS n FROM pg_sleep(0.6)")
        assert row.n == 7


async def test_a_long_statement_whose_backend_is_ended_says_so(
    session: Session, monolith_dsn: str
) -> None:
    waiting = asyncio.ensure_future(session.run_long("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    execute(monolith_dsn, f"SELECT pg_terminate_backend({session.pid})")
    with pytest.raises(ConnectionLost, match="57P01"):
        await waiting


async def test_a_long_statement_whose_reply_never_comes_is_given_up_when_nobody_answers(
    monolith_dsn: str, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(monolith_dsn)
    limits = {"connect_timeout_seconds": 0.3}
    dsn = proxy.dsn(monolith_dsn)
    async with opened(dsn, stall_timeout_seconds=0.1, monolith=limits) as session:
        proxy.when_seen(b"pg_sleep", proxy.stall)
        with pytest.raises(ConnectionLost, match="did not answer"):
            await session.run_long("SELECT pg_sleep(60)")


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_server_that_is_down_is_tried_until_the_deadline(
    monolith_dsn: str, make_proxy: MakeProxy, *, is_first: bool
) -> None:
    proxy = make_proxy(monolith_dsn)
    proxy.refuse()
    config = make_config(proxy.dsn(monolith_dsn), monolith_dsn, retry_deadline_seconds=0.5)
    with pytest.raises(ConnectionLost) as lost:
        await db.connect(config, Side.MONOLITH, "test", is_first=is_first)
    assert lost.value.exit_code == 5


async def test_a_server_that_comes_back_is_connected_to(
    monolith_dsn: str, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(monolith_dsn)
    proxy.refuse()
    config = make_config(proxy.dsn(monolith_dsn), monolith_dsn, retry_deadline_seconds=20)
    waiting = asyncio.ensure_future(db.connect(config, Side.MONOLITH, "test"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    proxy.heal()
    session = await waiting
    await session.run("SELECT 1")
    await session.close()
