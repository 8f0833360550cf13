"""Other people's DDL in mid-copy: it never waits for us for long, and the copy stays right.

The network to the service stands still while the statement runs, so a chunk is on its way on each
worker, and nothing but our giving way can let the statement through. A writer is at work all the
while, unless the statement takes its table away.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.faults.fix_copying import Copying, MakeCopying, in_background, names
from tests.fix_orders import CliResult, RunningCli

# Rows at the end of the old file, gone from the new one: blocks mean nothing any more.
HOLES = "UPDATE public.orders SET retry_count = 1 WHERE user_id % 3 = 0"
NEW_ORDERS = (
    "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity) "
    "SELECT gen_random_uuid(), 1, 'NEW', 'MARKET', 'BUY', n FROM generate_series(1, 100) n"
)
LONGEST_WAIT_SECONDS = 8.0  # the watcher looks four times a second; the rest is a busy machine


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"], scripts=(HOLES, ""), is_written_to=True)


@pytest.fixture
def still(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"])


def run_ddl(copying: Copying, statement: str) -> None:
    """Run a statement as an administrator would who does not let the application wait."""
    with psycopg.connect(copying.hub.monolith, autocommit=True) as connection:
        connection.execute(f"SET lock_timeout = '{LONGEST_WAIT_SECONDS}s'".encode())
        connection.execute(statement.encode())


def copy_with_ddl(
    copying: Copying, statement: str, then: Callable[[], object] = lambda: None
) -> CliResult:
    """Run a statement in mid-copy, and let the copy go on when it is done."""
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    run_ddl(copying, statement)
    assert running.process.poll() is None, "the copy ended before the statement had its lock"
    then()
    copying.proxies["service"].heal()
    return running.finish()


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM FULL public.orders",
        "CLUSTER public.orders USING idx_orders_symbol",
    ],
)
def test_a_rewrite_in_mid_copy_does_not_wait_and_the_leaf_begins_again(
    copying: Copying, statement: str
) -> None:
    done = copy_with_ddl(copying, statement)
    assert done.exit_code == 0, done.stderr
    assert "leaf_rewritten" in names(done)
    ended = next(event for event in done.events if event["event"] == "attempt_ended")
    assert "Gave way" in ended["reason"]
    copying.assert_complete()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (
            "ALTER TABLE public.orders ALTER COLUMN retry_count TYPE bigint",
            "column retry_count of public.orders",
        ),
        ("DROP TABLE public.orders CASCADE", "public.orders"),
    ],
    ids=["ALTER TYPE", "DROP TABLE"],
)
def test_a_change_of_the_schema_in_mid_copy_does_not_wait_and_is_refused(
    still: Copying, statement: str, says: str
) -> None:
    assert_refused(copy_with_ddl(still, statement), says)
    assert still.on_service("SELECT phase FROM ordermigrate.run") == [("copying",)]


def test_a_change_of_the_schema_that_is_undone_lets_the_copy_go_on(copying: Copying) -> None:
    add = "ALTER TABLE public.orders ADD COLUMN note text"
    assert_refused(copy_with_ddl(copying, add), "column note of public.orders was added")
    assert_refused(copying.run(), "note")
    copying.on_monolith("ALTER TABLE public.orders DROP COLUMN note")
    copying.finish()


def assert_refused(refused: CliResult, says: str) -> None:
    assert refused.exit_code == 3, (refused.exit_code, refused.stderr)
    assert "Traceback" not in refused.stderr
    assert says in refused.stderr.splitlines()[-1]


def test_an_index_built_or_dropped_on_the_monolith_disturbs_nothing(copying: Copying) -> None:
    done = copy_with_ddl(
        copying,
        "DROP INDEX public.idx_orders_status",
        lambda: copying.on_monolith("CREATE INDEX idx_orders_status ON public.orders (status)"),
    )
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


def test_a_rewrite_between_a_killed_copy_and_its_resume_starts_the_leaf_again(
    make_copying: MakeCopying,
) -> None:
    copying = make_copying(scripts=(HOLES, ""), is_written_to=True)
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    copying.on_monolith("VACUUM FULL public.orders")
    done = copying.finish()
    rewritten = next(event for event in done.events if event["event"] == "leaf_rewritten")
    assert rewritten["rows_removed"] > 0


def test_a_truncate_in_mid_copy_does_not_wait_and_what_came_after_it_is_all_there_is(
    still: Copying,
) -> None:
    done = copy_with_ddl(still, "TRUNCATE public.orders", lambda: still.on_monolith(NEW_ORDERS))
    assert done.exit_code == 0, done.stderr
    still.assert_caught_up()
    assert still.compare().service_rows == 100


def test_a_rewrite_after_rows_were_taken_off_again_does_not_confuse_their_count(
    make_copying: MakeCopying,
) -> None:
    copying = make_copying()
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    copying.on_monolith(HOLES)
    killed = copying.run(at=("subtracted", 1, RunningCli.kill))
    assert killed.exit_code == -signal.SIGKILL, killed.stderr
    (subtracted,) = [each for each in killed.events if each["event"] == "subtracted"]
    assert subtracted["rows"] > 0
    copying.on_monolith("VACUUM FULL public.orders")
    done = copying.run()
    assert done.exit_code == 0, done.stderr
    copying.assert_caught_up()


def test_the_monolith_is_let_go_while_the_service_takes_rows_off_again(
    make_copying: MakeCopying,
) -> None:
    """However long that takes: nobody's ALTER TABLE waits for it, and no idle time runs out."""
    copying = make_copying()
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    copying.on_monolith(HOLES)
    with psycopg.connect(copying.hub.service) as other:
        other.execute("SELECT FROM public.orders FOR UPDATE")  # rows that are to be taken off
        running = copying.start()
        running.wait_for_event("rows_copied")
        copying.await_lock_wait("service", "ordermigrate copy: subtraction")
        open_there = copying.on_monolith(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'ordermigrate copy: subtraction' AND xact_start IS NOT NULL"
        )
        assert open_there == [(0,)]
        other.rollback()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert names(done).count("subtracted") == 1
    copying.assert_caught_up()


def test_a_rewrite_after_the_snapshot_s_session_was_ended_is_noticed(copying: Copying) -> None:
    # The keeper's lock is gone, its snapshot with it; only the workers' own locks are left.
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    assert copying.end_backends("monolith", "ordermigrate copy: snapshot") == 1
    run_ddl(copying, "VACUUM FULL public.orders")
    copying.proxies["service"].heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert "leaf_rewritten" in names(done)
    copying.assert_complete()


def test_a_rewrite_that_overtakes_a_worker_is_noticed_by_the_file(
    make_copying: MakeCopying,
) -> None:
    # All sessions on the monolith end at once, as in a failover, and the rewrite is there first.
    copying = make_copying(behind=["monolith", "service"], scripts=(HOLES, ""), is_written_to=True)
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    copying.proxies["monolith"].refuse()
    copying.proxies["monolith"].cut()
    run_ddl(copying, "VACUUM FULL public.orders")
    copying.proxies["service"].heal()
    copying.proxies["monolith"].heal()
    done = running.finish()
    assert "leaf_rewritten" in names(done), done.stderr
    copying.recover(done)


def test_ddl_before_the_first_chunk_does_not_wait_either(copying: Copying) -> None:
    running = copying.start(
        at=("snapshot_taken", 1, lambda _: run_ddl(copying, "VACUUM FULL public.orders"))
    )
    copying.recover(running.finish())


def test_ddl_after_the_last_chunk_does_not_wait(copying: Copying) -> None:
    waited: list[float] = []

    def rewrite() -> None:
        started = time.monotonic()
        run_ddl(copying, "VACUUM FULL public.orders")
        waited.append(time.monotonic() - started)

    running = copying.start()
    running.wait_for_event("rows_copied")
    with in_background(rewrite):
        result = running.finish()
    assert waited
    copying.recover(result)


def test_a_snapshot_that_has_grown_too_old_is_followed_by_another(
    make_copying: MakeCopying,
) -> None:
    # A second for each snapshot, and the network stands still until the first is over.
    # One worker has copied a chunk by then.
    limits = {"max_snapshot_age_minutes": 1 / 60, "workers": 1}
    copying = make_copying(behind=["service"], limits=limits, is_written_to=True)
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    running.wait_for_event("attempt_ended")
    copying.proxies["service"].heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    ended = next(event for event in done.events if event["event"] == "attempt_ended")
    assert "max_snapshot_age_minutes" in ended["reason"]
    assert "subtracted" in names(done)  # what was written between two snapshots
    assert names(done).count("snapshot_taken") >= 2
    snapshots = copying.on_service("SELECT count(*) FROM ordermigrate.attempt")
    assert snapshots[0][0] == names(done).count("snapshot_taken")
    copying.assert_complete()


# ------------------------------------------------------------------------------------------- parts

FILL = "SELECT n, repeat(md5(n::text), 8) FROM generate_series({}, {}) n"
PARTED = f"""
CREATE TABLE public.parted (id integer PRIMARY KEY, word text) PARTITION BY RANGE (id);
CREATE TABLE public.low PARTITION OF public.parted FOR VALUES FROM (0) TO (10000);
CREATE TABLE public.middle PARTITION OF public.parted FOR VALUES FROM (10000) TO (20000);
CREATE TABLE public.high (LIKE public.parted INCLUDING ALL);
INSERT INTO public.parted {FILL.format(0, 19_999)};
INSERT INTO public.high {FILL.format(20_000, 20_999)};
ANALYZE
"""
WHOLE = "CREATE TABLE public.parted (id integer PRIMARY KEY, word text)"
MIDDLE = "FOR VALUES FROM (10000) TO (20000)"
ATTACH_HIGH = (
    "ALTER TABLE public.parted ATTACH PARTITION public.high FOR VALUES FROM (20000) TO (30000)"
)
DETACH_HIGH = "ALTER TABLE public.parted DETACH PARTITION public.high"
DETACH_MIDDLE = "ALTER TABLE public.parted DETACH PARTITION public.middle"
WRITES = (
    "UPDATE public.parted SET word = 'changed' WHERE id % 100 = 1;"
    "DELETE FROM public.parted WHERE id % 100 = 2;"
    "INSERT INTO public.parted SELECT id, 'again' FROM generate_series(2, 9999, 200) id"
)
MORE = "FOR VALUES FROM (30000) TO (40000)"
MORE_ROWS = "INSERT INTO public.parted SELECT n, 'more' FROM generate_series(30000, 30099) n"
WRITES_ASIDE = (
    "UPDATE public.middle SET word = 'aside' WHERE id % 100 = 3;"
    "DELETE FROM public.middle WHERE id % 100 = 4"
)


@pytest.fixture
def parted(make_copying: MakeCopying) -> Copying:
    return make_copying(
        orders=10,
        behind=["service"],
        tables=[{"name": "public.parted"}],
        scripts=(PARTED, WHOLE),
    )


@pytest.mark.parametrize(
    ("statements", "rows"),
    [
        ([ATTACH_HIGH, WRITES], 20_840),
        ([WRITES, ATTACH_HIGH], 20_850),
        ([DETACH_MIDDLE, WRITES, WRITES_ASIDE], 9_950),
        ([WRITES, DETACH_MIDDLE, WRITES_ASIDE], 9_950),
        (
            [
                DETACH_MIDDLE,
                WRITES_ASIDE,
                f"ALTER TABLE public.parted ATTACH PARTITION public.middle {MIDDLE}",
                WRITES,
            ],
            19_750,
        ),
        ([DETACH_MIDDLE, "DROP TABLE public.middle", WRITES], 9_950),
        (
            [f"CREATE TABLE public.more PARTITION OF public.parted {MORE}", WRITES, MORE_ROWS],
            19_950,
        ),
        (["TRUNCATE public.low", WRITES], 9_950),
        (["VACUUM FULL public.low", WRITES], 19_850),
    ],
    ids=[
        "attached",
        "attached after writes",
        "detached",
        "detached after writes",
        "detached and attached again",
        "dropped",
        "made",
        "truncated",
        "rewritten",
    ],
)
def test_parts_may_come_and_go_in_mid_copy(
    parted: Copying, statements: list[str], rows: int
) -> None:
    def go_on() -> None:
        for statement in statements[1:]:
            run_ddl(parted, statement)

    done = copy_with_ddl(parted, statements[0], go_on)
    assert done.exit_code == 0, done.stderr
    parted.assert_caught_up()
    assert parted.compare("public.parted").service_rows == rows


@pytest.mark.parametrize(
    ("statements", "rows"),
    [
        ([], 21_000),
        ([DETACH_HIGH], 20_000),
        ([DETACH_HIGH, "DROP TABLE public.high"], 20_000),
        ([DETACH_HIGH, "DELETE FROM public.high WHERE id % 2 = 0", ATTACH_HIGH], 20_500),
    ],
    ids=["that stayed", "detached", "dropped", "detached and attached again"],
)
def test_a_part_that_came_between_two_attempts_and_went_before_sync_leaves_no_rows(
    parted: Copying, statements: list[str], rows: int
) -> None:
    killed = parted.run(at=("chunk_copied", 2, RunningCli.kill))
    assert killed.exit_code == -signal.SIGKILL, killed.stderr
    parted.on_monolith(ATTACH_HIGH)
    done = parted.run()
    assert done.exit_code == 0, done.stderr
    for statement in statements:
        parted.on_monolith(statement)
    parted.assert_caught_up()
    assert parted.compare("public.parted").service_rows == rows


def test_a_part_rewritten_after_rows_were_taken_off_again_does_not_confuse_their_count(
    parted: Copying,
) -> None:
    parted.run(at=("chunk_copied", 2, RunningCli.kill))
    parted.on_monolith(WRITES)
    killed = parted.run(at=("subtracted", 1, RunningCli.kill))
    assert killed.exit_code == -signal.SIGKILL, killed.stderr
    parted.on_monolith("VACUUM FULL public.low")
    done = parted.run()
    assert done.exit_code == 0, done.stderr
    assert "leaf_rewritten" in names(done)
    parted.assert_caught_up()
