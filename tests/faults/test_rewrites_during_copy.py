"""Other people's DDL in mid-copy: it never waits for us for long, and the copy stays right.

The network to the service stands still while the statement runs, so a chunk is on its way on each
worker, and nothing but our giving way can let the statement through.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest

from tests.faults.fix_copying import Copying, MakeCopying, in_background, names
from tests.fix_orders import CliResult, RunningCli

LONGEST_WAIT_SECONDS = 8.0  # the watcher looks four times a second; the rest is a busy machine


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
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
    # Rows at the end of the old file, gone from the new one: blocks mean nothing any more.
    copying.on_monolith("UPDATE public.orders SET retry_count = 1 WHERE user_id % 3 = 0")
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
    copying: Copying, statement: str, says: str
) -> None:
    assert_refused(copy_with_ddl(copying, statement), says)
    assert copying.on_service("SELECT phase FROM ordermigrate.run") == [("copying",)]


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
    copying = make_copying()
    copying.on_monolith("UPDATE public.orders SET retry_count = 1 WHERE user_id % 3 = 0")
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    copying.on_monolith("VACUUM FULL public.orders")
    done = copying.finish()
    rewritten = next(event for event in done.events if event["event"] == "leaf_rewritten")
    assert rewritten["rows_removed"] > 0


def test_a_rewrite_after_the_snapshot_s_session_was_ended_is_noticed(copying: Copying) -> None:
    # The keeper's lock is gone, its snapshot with it; only the workers' own locks are left.
    copying.on_monolith("UPDATE public.orders SET retry_count = 1 WHERE user_id % 3 = 0")
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
    copying = make_copying(behind=["monolith", "service"])
    copying.on_monolith("UPDATE public.orders SET retry_count = 1 WHERE user_id % 3 = 0")
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


def test_ddl_before_the_first_chunk_does_not_wait_either(make_copying: MakeCopying) -> None:
    copying = make_copying(behind=["service"])
    running = copying.start(
        at=("snapshot_taken", 1, lambda _: run_ddl(copying, "VACUUM FULL public.orders"))
    )
    copying.recover(running.finish())


def test_ddl_while_the_rows_are_counted_does_not_wait(make_copying: MakeCopying) -> None:
    copying = make_copying()
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
    copying = make_copying(behind=["service"], limits={"max_snapshot_age_minutes": 1 / 60})
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    running.wait_for_event("attempt_ended")
    copying.proxies["service"].heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    ended = next(event for event in done.events if event["event"] == "attempt_ended")
    assert "max_snapshot_age_minutes" in ended["reason"]
    assert names(done).count("snapshot_taken") >= 2
    snapshots = copying.on_service("SELECT count(*) FROM ordermigrate.attempt")
    assert snapshots[0][0] == names(done).count("snapshot_taken")
    copying.assert_complete()
