"""What may happen to a change of owner besides being cut off: replies, locks, rivals, writers."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from ordermigrate import db, sides
from ordermigrate.changes import Change, Stand
from ordermigrate.commits import RESOLVE_SECONDS, Transaction, read_outcome
from ordermigrate.config import load
from ordermigrate.errors import Refused
from ordermigrate.model import Direction
from ordermigrate.model import Side as OneSide
from ordermigrate.recovery import adopt
from tests.acceptance.fix_running import ROWS, TABLE, bring_up, catch_up, ends, succeed
from tests.faults.fix_changing import (
    ANY_SESSION,
    BETWEEN,
    COMMANDS,
    Changing,
    Command,
    MakeChanging,
    sides_of,
)
from tests.faults.fix_copying import await_true, in_background
from tests.faults.fix_syncing import told
from tests.faults.test_lost_replies import cut_when_it_is_lost
from tests.fix_orders import CliResult, RunningCli, StartCli
from tests.fix_pairs import MakePair, MakeRole, Pair, assert_refused, role_dsn
from tests.fix_postgres import SIDES, Side, TestServers, execute
from tests.fix_traffic import FENCED
from tests.integration.ground import Heard

LETS_GO = b"SET is_hot = false"
HOLDS_TURN = b"SELECT pg_advisory_lock(hashtextextended('ordermigrate apply'"
TAKES_OVER = b"SET is_hot = true"
WRITE = "UPDATE public.thing SET number = number + 1 WHERE id = 7"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A small table that is followed, and proved equal."""
    # No sync is at work beside: the lag is what it is.
    limits = {"max_pause_seconds": 2.0, "max_lag_seconds": 600.0}
    return make_pair(ROWS, TABLE, limits=limits, brought_by=bring_up)


@contextmanager
def opened(dsn: str, *statements: str) -> Iterator[psycopg.Connection]:
    """Keep a transaction open that has run these statements."""
    with psycopg.connect(dsn) as connection:
        for each in statements:
            connection.execute(each.encode())
        yield connection
        connection.rollback()


def require_owner(pair: Pair, owner: Side) -> None:
    """Exactly one side takes writes, and it is this one."""
    assert succeed(pair, "status", "--json").json["owner"] == owner
    for side, dsn in (("monolith", pair.monolith), ("service", pair.service)):
        if side == owner:
            execute(dsn, WRITE)
        else:
            with pytest.raises(psycopg.Error) as refused:
                execute(dsn, WRITE)
            assert refused.value.sqlstate == FENCED


def count_refused(dsn: str) -> int:
    """Return how many writes a side's fence has refused."""
    return int(
        execute(dsn, "SELECT last_value::int * is_called::int FROM ordermigrate.refused_writes")[0][
            0
        ]
    )


# ------------------------------------------------------------------------- between the two commits


@pytest.mark.parametrize("is_aborting", [False, True], ids=["finished", "aborted"])
@pytest.mark.parametrize("command", COMMANDS)
def test_both_servers_restarted_between_the_two_commits_change_nothing(
    changing: Changing, postgres_servers: TestServers, command: Command, *, is_aborting: bool
) -> None:
    if not all(postgres_servers.of(side).is_ours for side in SIDES):
        pytest.skip("needs servers of its own, to kill them")
    source, _ = sides_of(command)
    changing.stand_before(command)
    with changing.traffic(begins_at=source) as traffic, changing.watched() as watcher:
        traffic.wait_for_commits(10)
        changing.strand(command)
        said = changing.status()
        assert said["owner"] == "none"
        assert f"`ordermigrate {command}`" in said["alarm"]
        assert f"`ordermigrate {command} --abort`" in said["alarm"]
        for side in SIDES:
            server = postgres_servers.of(side).own
            assert server is not None
            server.kill()
            server.start()
        assert changing.owner() == "none"
        changing.bring_home(command, is_aborting=is_aborting)
        traffic.wait_for_commits(traffic.commits + 5)
        changing.settle(traffic)
        assert watcher.seen["none"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("lost", ["letting go", "taking over"])
def test_a_change_whose_commit_is_done_and_never_heard_of_goes_on(
    changing: Changing, command: Command, lost: str
) -> None:
    source, target = sides_of(command)
    side, statement = (source, LETS_GO) if lost == "letting go" else (target, TAKES_OVER)
    changing.stand_before(command)
    proxy = changing.syncing.proxies[side]
    with changing.traffic(begins_at=source) as traffic, changing.watched():
        traffic.wait_for_commits(5)
        proxy.when_seen(statement, lambda: proxy.when_seen(b"COMMIT", proxy.swallow_replies))
        running = changing.start(command)
        with in_background(lambda: cut_when_it_is_lost(proxy)):
            done = running.finish()
        assert done.exit_code == 0, told(done)
        changing.require_owner(target)
        traffic.wait_until(lambda it: it.places[1] > 3)
        changing.settle(traffic)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commit_that_the_owner_does_not_take_is_undone_at_once(
    changing: Changing, command: Command
) -> None:
    source, _ = sides_of(command)
    changing.stand_before(command)

    def end_freezer() -> None:
        changing.syncing.end_backends(source, f"ordermigrate {command}: freeze")

    with changing.traffic(begins_at=source) as traffic, changing.watched():
        traffic.wait_for_commits(5)
        changing.syncing.proxies[source].when_seen(LETS_GO, end_freezer)
        began = time.monotonic()
        ended = changing.run(command)
        assert ended.exit_code == 7, told(ended)
        assert time.monotonic() - began < RESOLVE_SECONDS
        changing.require_owner(source)
        assert not traffic.counts["refused"]
        changing.bring_home(command)
        changing.settle(traffic)


def test_a_last_round_that_takes_too_long_is_undone_at_once(changing: Changing) -> None:
    changing.prove()
    with changing.traffic() as traffic, changing.watched():
        traffic.wait_for_commits(5)
        service = changing.syncing.proxies["service"]
        running = changing.start(
            "cutover", "--max-pause", "1.5", at=("frozen", 1, lambda _: service.stall())
        )
        running.wait_for_event("frozen")
        commits = traffic.commits
        # The service says nothing; the monolith's writers go on all the same.
        traffic.wait_for_commits(commits + 5)
        service.heal()
        ended = running.finish()
        assert ended.exit_code == 7, told(ended)
        assert not traffic.counts["refused"]
        changing.bring_home("cutover")
        changing.settle(traffic)


def test_writers_go_on_though_nothing_more_is_heard_of_a_change(changing: Changing) -> None:
    """It stands still before its first commit; the owner's server lets them go by itself."""
    changing.syncing.configure(stall_timeout_seconds=60.0)
    changing.prove()
    monolith, is_still = changing.syncing.proxies["monolith"], threading.Event()

    def stand_still() -> None:
        monolith.stall()
        is_still.set()

    with changing.traffic() as traffic, changing.watched():
        traffic.wait_for_commits(5)
        monolith.when_seen(LETS_GO, stand_still)
        running = changing.start("cutover", "--max-pause", "1.5")
        assert is_still.wait(60)
        running.process.send_signal(signal.SIGSTOP)
        traffic.wait_for_commits(traffic.commits + 5, timeout_seconds=15)
        running.process.send_signal(signal.SIGCONT)
        monolith.heal()
        ended = running.finish()
        assert ended.exit_code == 7, told(ended)
        assert not traffic.counts["refused"]
        changing.bring_home("cutover")
        changing.settle(traffic)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_proof_that_becomes_void_after_the_gates_stops_the_change(
    changing: Changing, command: Command
) -> None:
    source, target = sides_of(command)
    changing.stand_before(command)

    def void() -> None:
        changing.syncing.on(
            "service", "INSERT INTO ordermigrate.voiding (reason) VALUES ('somebody else did it')"
        )

    # The last rounds before the freeze are over, by whomever.
    changing.syncing.proxies[target].when_seen(HOLDS_TURN, void)
    ended = changing.run(command)
    assert ended.exit_code == 3, told(ended)
    assert "the last validation is void: somebody else did it" in ended.stderr
    changing.require_owner(source)
    changing.prove()
    changing.bring_home(command)


def test_a_pause_that_is_too_short_for_anything_is_undone_again_and_again(pair: Pair) -> None:
    for _ in range(5):
        began = time.monotonic()
        done = pair.run("cutover", "--max-pause", "0.01")
        assert done.exit_code == 7, done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - began < RESOLVE_SECONDS
        require_owner(pair, "monolith")
        catch_up(pair)
    succeed(pair, "cutover")
    require_owner(pair, "service")


@contextmanager
def missing_standby(dsn: str) -> Iterator[Callable[[], None]]:
    """Give a function after which each commit of a server waits for a standby that is not there."""

    def probe() -> None:
        with psycopg.connect(dsn, autocommit=True, application_name="probe") as connection:
            while not is_seen.is_set():
                connection.execute("SELECT pg_logical_emit_message(true, 'probe', '')")

    def is_waiting() -> bool:
        found = execute(
            dsn,
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'probe' AND wait_event = 'SyncRep'",
        )
        if found:
            is_seen.set()
        return bool(found)

    def lose() -> None:
        execute(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        execute(dsn, "SELECT pg_reload_conf()")
        prober.start()
        await_true(is_waiting)

    is_seen = threading.Event()
    prober = threading.Thread(target=probe, daemon=True)
    try:
        yield lose
    finally:
        is_seen.set()
        execute(dsn, "ALTER SYSTEM RESET synchronous_standby_names")
        execute(dsn, "SELECT pg_reload_conf()")
        if prober.ident:
            prober.join(30)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("waits", ["letting go", "taking over"])
def test_a_commit_that_waits_for_a_standby_is_done_though_nobody_sees_it(
    make_changing: MakeChanging, command: Command, waits: str
) -> None:
    changing = make_changing(max_pause_seconds=2.0)
    source, target = sides_of(command)
    side, statement = (source, LETS_GO) if waits == "letting go" else (target, TAKES_OVER)
    changing.stand_before(command)
    with changing.watched(), missing_standby(changing.dsns[side]) as lose:
        changing.syncing.proxies[side].when_seen(statement, lose)
        ended = changing.run(command, "--json")
        assert changing.owner() == target, told(ended)
        assert ended.exit_code == 0, told(ended)
    changing.bring_home(command)
    changing.syncing.settle()


def test_an_undo_that_fails_says_what_to_do_next(make_changing: MakeChanging) -> None:
    changing = make_changing(max_pause_seconds=1.0, retry_deadline_seconds=1.0)
    changing.prove()
    monolith = changing.syncing.proxies["monolith"]
    with psycopg.connect(changing.dsns["service"]) as blocker, changing.watched():

        def spoil() -> None:
            # Who was about to take over is gone, and nobody else can; the monolith is out of reach.
            changing.syncing.end_backends("service", ANY_SESSION)
            blocker.execute("LOCK TABLE public.orders IN ROW EXCLUSIVE MODE")
            monolith.refuse()
            monolith.cut()

        monolith.when_seen(BETWEEN, spoil)
        ended = changing.run("cutover")
        assert ended.exit_code == 8, told(ended)
        (message,) = [line for line in ended.stderr.splitlines() if "Nobody owns" in line]
        assert "`ordermigrate cutover --abort`" in message
        assert changing.owner() == "none"
        blocker.rollback()
        changing.heal()
        assert changing.succeed("cutover", "--abort")["outcome"] == "aborted"
        changing.require_owner("monolith")
    changing.syncing.settle()


def test_a_takeover_that_cannot_be_finished_leaves_both_ways_open(
    make_changing: MakeChanging,
) -> None:
    changing = make_changing(max_pause_seconds=1.0)
    changing.prove()
    changing.strand("cutover")
    with opened(changing.dsns["service"], "LOCK TABLE public.orders IN ROW EXCLUSIVE MODE"):
        ended = changing.run("cutover")
        assert ended.exit_code == 8, told(ended)
        assert "`ordermigrate cutover --abort`" in ended.stderr
        assert changing.owner() == "none"
    changing.bring_home("cutover")
    changing.syncing.settle()


def test_numbers_of_a_standby_that_was_promoted_between_the_commits_are_past_the_old_ones(
    changing: Changing,
) -> None:
    changing.prove()
    changing.strand("cutover")
    # As the standby would be: it has the last round, and neither the intent nor the sequences.
    changing.syncing.on("service", "UPDATE ordermigrate.side SET intent = NULL")
    last = "SELECT coalesce(pg_sequence_last_value('public.order_lines_seq_seq'), 0)"
    changing.syncing.on("service", "ALTER SEQUENCE public.order_lines_seq_seq RESTART")
    changing.bring_home("cutover")
    assert changing.syncing.on("service", last) > changing.syncing.on("monolith", last)
    changing.syncing.settle()


def test_another_transaction_with_the_same_number_is_no_proof_that_the_owner_let_go(
    changing: Changing,
) -> None:
    # After a crash before anything of the first one was on disk the server gives its number again.
    changing.prove()
    ((pid, xid, timeline, epoch),) = changing.syncing.on(
        "monolith",
        "SELECT pg_backend_pid(), pg_current_xact_id()::text, "
        "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint, "
        "(SELECT epoch FROM ordermigrate.side)",
    )

    async def ask() -> tuple[str, bool]:
        config = load(changing.syncing.path, {})
        async with db.opened(config, OneSide.MONOLITH, "test") as session:
            told = await session.fetch_one("commits", "read_outcome", xid)
            theirs = Transaction(pid, xid, timeline, epoch + 1, is_hot=False)
            return str(told.outcome), await read_outcome(session, theirs, time.monotonic() + 5)

    assert asyncio.run(ask()) == ("committed", False)


# ------------------------------------------------------------------------------------------ rivals


def test_of_several_who_go_on_with_a_change_that_was_cut_off_one_has_it(
    changing: Changing,
) -> None:
    changing.prove()
    changing.strand("cutover")
    asyncio.run(go_on_as_two(changing))
    assert changing.owner() == "none"
    changing.bring_home("cutover")
    changing.syncing.settle()


async def go_on_as_two(changing: Changing) -> None:
    """Let two processes without the operator's lock go on with one change."""
    config = load(changing.syncing.path, {})
    async with db.open_pair(config, "one") as one, db.open_pair(config, "other") as other:
        rows = [await sides.read(each) for each in one]
        assert rows[0] is not None
        assert rows[1] is not None
        seen = rows[0].token, rows[1].token
        epoch = rows[1].epoch
        stand = Stand([], [])
        mine, theirs = (
            Change(config, Direction.FORWARD, rows[0].run, epoch, [], stand, stand, 1.0, Heard())
            for _ in range(2)
        )
        await adopt(mine, *one, seen, rows[0].round)
        with pytest.raises(Refused, match="another command is at work"):
            await adopt(theirs, *other, seen, rows[0].round)
        # The first one, were it slow, can neither undo nor finish once somebody has gone on.
        await adopt(theirs, *other, (mine.token, mine.token), rows[0].round)
        undone = mine.run, epoch + 1, mine.token
        assert await one[0].fetch_one("sides", "take_back", *undone) is None
        assert await one[1].fetch_one("sides", "take_over", mine.run, epoch, mine.token) is None


@pytest.mark.parametrize("command", COMMANDS)
def test_of_two_changes_at_once_one_is_told_that_another_is_at_work(
    changing: Changing, command: Command
) -> None:
    source, target = sides_of(command)
    changing.stand_before(command)
    with changing.traffic(begins_at=source) as traffic, changing.watched():
        traffic.wait_for_commits(5)
        both = [changing.start(command, "--json") for _ in range(2)]
        ended = [each.finish() for each in both]
        assert {each.exit_code for each in ended} <= {0, 6}, [told(each) for each in ended]
        outcomes = [each.json["outcome"] for each in ended if each.exit_code == 0]
        assert outcomes.count("done") == 1, outcomes
        changing.require_owner(target)
        changing.settle(traffic)


def await_rounds(changing: Changing, count: int) -> None:
    """Wait until so many rounds have been applied."""
    await_true(lambda: changing.syncing.rounds("service") >= count)


def test_a_sync_beside_a_change_turns_round_with_the_owner(changing: Changing) -> None:
    changing.prove()
    with changing.traffic() as traffic, changing.watched():
        running = changing.start("sync")
        running.wait_for_event("round_applied")
        for command in COMMANDS:
            done = changing.run(command, "--json")
            assert done.exit_code == 0, told(done)
            changing.require_owner(sides_of(command)[1])
            traffic.wait_for_commits(traffic.commits + 5)
            await_rounds(changing, changing.syncing.rounds("service") + 2)
        running.process.terminate()
        ended = running.finish()
        assert ended.exit_code == 0, told(ended)
        changing.settle(traffic)


def test_a_backlog_shuts_the_gate_of_a_cutover_and_is_brought_first_by_a_rollback(
    pair: Pair,
) -> None:
    pair = pair.but(limits={**pair.limits, "max_lag_seconds": 0.001})
    pair.on_monolith(WRITE)
    assert_refused(pair.run("cutover"), 3, ["the service is behind", "1 changes"])
    catch_up(pair)
    succeed(pair, "cutover")
    pair.on_service(WRITE)
    assert "they are brought first" in succeed(pair, "rollback", "--dry-run").stdout
    succeed(pair, "rollback")
    assert pair.on_monolith("SELECT number FROM public.thing WHERE id = 7") == [(72,)]
    require_owner(pair, "monolith")


# ------------------------------------------------------------------ who uses the tables meanwhile


def test_a_lock_on_the_other_side_ends_the_change_within_the_pause(changing: Changing) -> None:
    changing.prove()
    with changing.traffic() as traffic, changing.watched():
        traffic.wait_for_commits(5)
        with opened(changing.dsns["service"], "LOCK TABLE public.orders IN ROW EXCLUSIVE MODE"):
            ended = changing.run("cutover", "--max-pause", "0.7")
        assert ended.exit_code == 7, told(ended)
        traffic.wait_for_commits(traffic.commits + 5)
        assert not traffic.counts["refused"]
        assert not traffic.counts["lost"]
        changing.require_owner("monolith")
        changing.settle(traffic)


def test_a_writer_that_stays_is_named_and_keeps_its_transaction(pair: Pair) -> None:
    with opened(pair.monolith, WRITE) as writer:
        pair = pair.but(limits={**pair.limits, "lock_timeout_seconds": 1.0})
        done = pair.run("cutover")
        assert_refused(done, 7, [f"backend {writer.info.backend_pid}", "public.thing"])
        writer.commit()
    require_owner(pair, "monolith")
    succeed(pair, "cutover")
    require_owner(pair, "service")
    catch_up(pair)
    assert pair.compare()


def test_readers_and_a_vacuum_are_in_nobodys_way(pair: Pair) -> None:
    with (
        opened(pair.monolith, "SELECT count(*) FROM public.thing") as reader,
        opened(pair.service, "SELECT count(*) FROM public.thing"),
    ):
        is_over = threading.Event()

        def vacuum() -> None:
            with psycopg.connect(pair.monolith, autocommit=True) as connection:
                while not is_over.is_set():
                    connection.execute("VACUUM (FREEZE) public.thing")

        thread = threading.Thread(target=vacuum)
        thread.start()
        try:
            done = succeed(pair, "cutover", "--json").json
        finally:
            is_over.set()
            thread.join()
        assert done["outcome"] == "done"
        assert reader.execute("SELECT count(*) FROM public.thing").fetchone() == (50,)
    require_owner(pair, "service")


def test_ddl_that_waits_for_a_reader_has_its_way_and_the_change_is_undone(pair: Pair) -> None:
    pair = pair.but(limits={**pair.limits, "lock_timeout_seconds": 1.0})

    def alter() -> None:
        with psycopg.connect(pair.monolith) as connection:
            connection.execute("ALTER TABLE public.thing SET (fillfactor = 90)")

    waiting = (
        "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'public.thing'::regclass "
        "AND mode IN ('ShareUpdateExclusiveLock', 'AccessExclusiveLock')"
    )
    with opened(pair.monolith, "LOCK TABLE public.thing IN SHARE UPDATE EXCLUSIVE MODE"):
        thread = threading.Thread(target=alter)
        thread.start()
        await_true(lambda: bool(pair.on_monolith(waiting)))
        done = pair.run("cutover")
        assert done.exit_code == 7, done.stderr
        assert "Traceback" not in done.stderr
    thread.join(30)
    require_owner(pair, "monolith")


def test_a_prepared_transaction_shuts_a_gate_and_is_named(pair: Pair) -> None:
    with psycopg.connect(pair.monolith, autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute(WRITE.encode())
        connection.execute("PREPARE TRANSACTION 'in doubt'")
        try:
            assert_refused(pair.run("cutover"), 3, ["prepared transactions", "in doubt"])
            require_that_readers_go_on(pair)
        finally:
            connection.execute("COMMIT PREPARED 'in doubt'")
    succeed(pair, "cutover")
    require_owner(pair, "service")


def require_that_readers_go_on(pair: Pair) -> None:
    """The tables can be read and written."""
    assert pair.on_monolith("SELECT count(*) FROM public.thing") == [(50,)]
    pair.on_monolith("UPDATE public.thing SET word = word WHERE id = 8")


def await_more(done: Sequence[int], before: int) -> None:
    """Wait until more has been done."""
    await_true(lambda: len(done) > before)


def test_transactions_that_lock_in_opposite_orders_are_never_a_freezes_victims(
    make_pair: MakePair,
) -> None:
    two = f"{TABLE}; CREATE TABLE public.other (id integer PRIMARY KEY, word text)"
    fill = "INSERT INTO public.other SELECT n, 'w' FROM generate_series(1, 50) n"
    tables = [{"name": "public.thing"}, {"name": "public.other"}]
    rows = ROWS.partition("; ")[2]
    pair = make_pair(
        f"{two}; {rows}; {fill}", two, tables=tables, limits={"max_lag_seconds": 600.0}
    )
    bring_up(pair)
    is_over, errors, done = threading.Event(), list[psycopg.Error](), list[int]()
    names = ("public.thing", "public.other")

    def write(number: int) -> None:
        order = names if number % 2 else names[::-1]
        with psycopg.connect(pair.monolith, autocommit=True) as connection:
            while not is_over.is_set():
                try:
                    with connection.transaction():
                        for name in order:
                            # Rows of their own: among themselves they never meet.
                            connection.execute(
                                f"UPDATE {name} SET word = word || '.' WHERE id = {number}".encode()
                            )
                            is_over.wait(0.005)
                    done.append(number)
                except psycopg.Error as error:
                    if error.sqlstate == FENCED:
                        return
                    errors.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(1, 5)]
    for each in threads:
        each.start()
    try:
        await_true(lambda: len(done) > 20)
        for _ in range(3):
            # Between two statements of somebody there is no moment for a freeze, mostly.
            before = len(done)
            catch_up(pair)
            ended = pair.run("cutover")
            assert ended.exit_code in {0, 7}, ended.stderr
            if ended.exit_code == 0:
                break
            await_more(done, before)
    finally:
        is_over.set()
        for each in threads:
            each.join(30)
    assert not errors, errors
    succeed(pair, "cutover")
    catch_up(pair)
    assert all(pair.compare(table) for table in tables)


# ---------------------------------------------------------------- whatever way a write comes


PARTED = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, number integer) "
    "PARTITION BY RANGE (id);"
    "CREATE TABLE public.low PARTITION OF public.thing FOR VALUES FROM (0) TO (100);"
    "CREATE TABLE public.high PARTITION OF public.thing FOR VALUES FROM (100) TO (200)"
)
ROUTES: Mapping[str, str] = {
    "update": WRITE,
    "insert": "INSERT INTO public.thing VALUES (150, 'new', 1)",
    "leaf": "UPDATE public.low SET number = 0 WHERE id = 1",
    "truncate": "TRUNCATE public.high",
    "cte": "WITH gone AS (DELETE FROM public.thing WHERE id = 2 RETURNING id) SELECT * FROM gone",
    "merge": "MERGE INTO public.thing t USING (VALUES (3)) AS s (id) ON t.id = s.id "
    "WHEN MATCHED THEN UPDATE SET number = 0",
    "upsert": "INSERT INTO public.thing VALUES (4, 'x', 1) "
    "ON CONFLICT (id) DO UPDATE SET number = 1",
}


def test_no_way_of_writing_passes_a_side_that_has_let_go(
    make_role: MakeRole, make_pair: MakePair
) -> None:
    owner = make_role("owner")
    rows = ROWS.partition("; ")[2]
    pair = make_pair(f"{PARTED}; {rows}", PARTED)
    for (name,) in pair.on_monolith(
        "SELECT relid::regclass::text FROM pg_partition_tree('public.thing')"
    ):
        pair.on_monolith(f"ALTER TABLE {name} OWNER TO {owner}")
    bring_up(pair)
    version = int(pair.on_monolith("SHOW server_version_num")[0][0])
    routes = {name: each for name, each in ROUTES.items() if name != "merge" or version >= 150000}
    with (
        psycopg.connect(pair.monolith) as old,
        psycopg.connect(pair.monolith, autocommit=True) as hot,
        psycopg.connect(role_dsn(pair.monolith, owner), autocommit=True) as theirs,
    ):
        for each in (hot, theirs):
            each.execute("PREPARE late AS UPDATE public.thing SET number = number + 1")
            each.execute("EXECUTE late")
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM public.thing")
        succeed(pair, "cutover")
        before = count_refused(pair.monolith)
        refuse(old, WRITE)
        old.rollback()
        for each in (hot, theirs):
            refuse(each, "EXECUTE late")
            for statement in routes.values():
                refuse(each, statement)
            if each is hot:  # a superuser
                each.execute("SET session_replication_role = replica")
            refuse(each, WRITE)
            with (
                pytest.raises(psycopg.Error) as refused,
                each.cursor() as cursor,
                cursor.copy("COPY public.thing FROM STDIN") as copy,
            ):
                copy.write_row((160, "copied", 1))
            assert refused.value.sqlstate == FENCED
        assert count_refused(pair.monolith) - before >= 2 * len(routes)
        for statement in routes.values():
            with opened(pair.service, statement):
                pass  # each of them is taken by the owner
        # The same sessions, as a pool keeps them, go on when the owner is back.
        succeed(pair, "rollback")
        hot.execute("RESET session_replication_role")
        for each in (hot, theirs):
            each.execute("EXECUTE late")
    catch_up(pair)
    assert pair.compare()


def refuse(connection: psycopg.Connection, statement: str) -> None:
    """Have a statement refused by the fence."""
    with pytest.raises(psycopg.Error) as refused:
        connection.execute(statement.encode())
    assert refused.value.sqlstate == FENCED, (statement, refused.value)


def test_writers_who_waited_for_the_freeze_go_on_or_are_told_where_to(
    pair: Pair, start_cli: StartCli
) -> None:
    # One waits behind a freeze that dies, the other behind one that commits.
    pair.write_toml(tables=pair.tables, limits=pair.limits)
    ended: dict[str, CliResult] = {}

    def freeze_and_die(it: RunningCli) -> None:
        it.kill()

    ended["dies"] = start_cli("cutover", at=("frozen", 1, freeze_and_die), **ends(pair)).finish()
    execute(pair.monolith, f"SET lock_timeout = '20s'; {WRITE}")
    is_written = threading.Event()
    said: list[str] = []

    def wait_and_write() -> None:
        with psycopg.connect(pair.monolith, autocommit=True) as connection:
            while not is_written.is_set():
                try:
                    connection.execute(WRITE.encode())
                    is_written.wait(0.005)
                except psycopg.Error as error:
                    said.append(str(error.sqlstate))
                    return

    thread = threading.Thread(target=wait_and_write)
    thread.start()
    try:
        done = start_cli("cutover", **ends(pair)).finish()
        assert done.exit_code == 0, told(done)
    finally:
        await_true(lambda: not thread.is_alive())
        is_written.set()
    assert said == [FENCED]
    catch_up(pair)
    assert pair.compare()
