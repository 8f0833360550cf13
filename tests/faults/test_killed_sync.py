"""A sync that is killed or stopped, whenever that is, goes on where it was."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess

import pytest

from tests.faults.fix_copying import await_true, names
from tests.faults.fix_syncing import ROUND_EVENTS, Syncing, nth_of, told
from tests.fix_family import KINDS, TRUNCATE
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES


@pytest.mark.parametrize("event", ROUND_EVENTS)
def test_a_killed_sync_loses_nothing(syncing: Syncing, event: str) -> None:
    kinds = KINDS if event == "quiet" else (*KINDS, TRUNCATE)
    with syncing.traffic(kinds=kinds, is_slow=event == "quiet") as traffic:
        killed = syncing.start(at=(event, nth_of(event), RunningCli.kill)).finish()
        assert killed.exit_code == -signal.SIGKILL, told(killed)
        assert names(killed).count(event) >= nth_of(event)
        traffic.wait_for_commits(traffic.commits + 5)
        syncing.catch_up()
        syncing.settle(traffic)


@pytest.mark.slow
def test_a_sync_killed_at_any_time_at_all_goes_on(syncing: Syncing) -> None:
    # Between events, too: each run is killed a little later after its first round than the last.
    with syncing.traffic() as traffic:
        for place in range(8):
            running = syncing.start()
            running.wait_for_event("round_begun")
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(0.01 * 1.5**place)
            running.kill()
            running.finish()
        syncing.settle(traffic)


def test_a_round_killed_between_its_commits_is_done_again_and_changes_nothing(
    syncing: Syncing,
) -> None:
    # There is no TRUNCATE, for which a table is emptied each time.
    with syncing.traffic() as traffic:
        traffic.wait_for_commits(60)
    waiting = syncing.waiting()
    assert waiting
    # The target's COMMIT has arrived; nothing more of what this sync says will, on either side.
    syncing.at_commit("service", syncing.proxies["monolith"].stall)
    running = syncing.start("--once")
    await_true(lambda: syncing.rounds("service") == 1)
    running.kill()
    running.finish()
    syncing.proxies["monolith"].cut()
    syncing.proxies["monolith"].heal()
    assert (syncing.rounds("monolith"), syncing.waiting()) == (0, waiting)
    syncing.assert_identical()
    before = syncing.rows_by_age()
    again = json.loads(syncing.run("sync", "--once", "--json"))
    assert (again["rounds"], again["changes"]) == (1, waiting)
    assert (again["written"], again["deleted"]) == (0, 0)
    assert syncing.rows_by_age() == before
    assert (syncing.rounds("monolith"), syncing.rounds("service")) == (2, 2)
    assert syncing.waiting() == 0
    syncing.settle(traffic)


@pytest.mark.parametrize("event", ["following", "changes_staged", "round_half_committed", "quiet"])
def test_sigterm_ends_a_sync_after_its_round(syncing: Syncing, event: str) -> None:
    with syncing.traffic(is_slow=event == "quiet") as traffic:
        ended = syncing.start("--json", at=(event, nth_of(event), terminate)).finish()
        assert ended.exit_code == 0, told(ended)
        assert "Traceback" not in ended.stderr
        # Whatever was begun is done on both sides.
        assert syncing.rounds("monolith") == syncing.rounds("service")
        assert names(ended).count("round_begun") == names(ended).count("round_applied")
        assert ended.json["rounds"] == names(ended).count("round_applied")
        assert ended.json["outcome"] in {"stopped", "caught_up"}
        assert_nothing_left_open(syncing)
        syncing.settle(traffic)


@pytest.mark.parametrize("event", ["changes_written", "round_half_committed", "quiet"])
def test_an_interrupted_sync_says_so_and_goes_on_later(syncing: Syncing, event: str) -> None:
    with syncing.traffic(is_slow=event == "quiet") as traffic:
        ended = syncing.start(at=(event, nth_of(event), RunningCli.interrupt)).finish()
        assert ended.exit_code == 130, told(ended)
        assert "Traceback" not in ended.stderr
        assert "ordermigrate: Interrupted. Run the same command again" in ended.stderr
        assert_nothing_left_open(syncing)
        syncing.settle(traffic)


def test_once_ends_after_one_round(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        traffic.wait_for_commits(10)
        done = syncing.start("--once", "--json").finish()
        assert done.exit_code == 0, told(done)
        assert done.json["rounds"] == 1
        assert names(done).count("round_applied") == 1
        assert syncing.rounds("monolith") == syncing.rounds("service") == 1
        syncing.settle(traffic)
    again = json.loads(syncing.run("sync", "--once", "--json"))
    assert (again["rounds"], again["outcome"]) == (0, "caught_up")


def test_until_caught_up_ends_while_writers_write(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        traffic.wait_for_commits(30)
        done = syncing.start("--until-caught-up", "--json").finish()
        assert done.exit_code == 0, told(done)
        assert done.json["outcome"] == "caught_up"
        assert done.json["rounds"] >= 1
        syncing.settle(traffic)
    before = syncing.rows_by_age(), syncing.rounds("service")
    again = json.loads(syncing.run("sync", "--until-caught-up", "--json"))
    assert (again["rounds"], again["written"], again["deleted"]) == (0, 0, 0)
    assert (syncing.rows_by_age(), syncing.rounds("service")) == before


def terminate(running: RunningCli) -> None:
    """Do what a supervisor does."""
    running.process.send_signal(signal.SIGTERM)


def assert_nothing_left_open(syncing: Syncing) -> None:
    """Assert that no transaction of a sync that has ended is open on either side."""
    open_ones = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE 'ordermigrate sync%'"
    )
    await_true(lambda: all(syncing.on(side, open_ones) == [(0,)] for side in SIDES))
