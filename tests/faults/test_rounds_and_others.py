"""A round beside a copy that is begun anew, and one in which one side works for long."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    bring_up,
    catch_up,
    ends,
    require_end,
    require_stopped,
    syncing,
)
from tests.faults.fix_copying import await_true
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, Pair

STALL_SECONDS = 1.5


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table of which nothing on the service is dropped for a load: a key of another needs it."""
    needed = f"{TABLE}; CREATE TABLE public.note (id integer REFERENCES public.thing)"
    return make_pair(ROWS, needed, brought_by=bring_up)


def test_a_sync_takes_no_round_once_the_copy_is_begun_anew(
    pair: Pair, start_cli: StartCli, tmp_path: Path
) -> None:
    brake = tmp_path / "hold on"
    brake.touch()
    with syncing(pair, start_cli) as running:
        anew = start_cli("copy", "--restart", "--throttle", f"file={brake}", **ends(pair))
        anew.wait_for_event("throttled")
        # The snapshot has this row; its deletion must stay in the log.
        pair.on_monolith("DELETE FROM public.thing WHERE id = 7")
        require_stopped(running, ["ordermigrate status"])
    assert pair.on_monolith("SELECT count(*) FROM ordermigrate.change_log_1") == [(1,)]
    brake.unlink()
    done = anew.finish()
    assert done.exit_code == 0, done.stderr
    catch_up(pair)
    assert pair.on_service("SELECT count(*) FROM public.thing WHERE id = 7") == [(0,)]
    require_end(pair)


def test_a_round_in_which_the_service_works_for_long_does_not_lose_the_monolith(
    pair: Pair, start_cli: StartCli
) -> None:
    """The monolith's server would end a transaction in which nothing happens."""
    slow = pair.but(limits={"stall_timeout_seconds": STALL_SECONDS})
    pair.on_monolith("UPDATE public.thing SET word = 'x' WHERE id = 1")
    with psycopg.connect(pair.service) as holder:
        holder.execute("SELECT 1 FROM public.thing WHERE id = 1 FOR UPDATE")
        slow.write_toml(tables=slow.tables, limits=slow.limits)
        running = start_cli("sync", "--once", **ends(slow))
        # Beyond twice that limit, and still the same transaction.
        is_older = (
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND "
            "application_name = 'ordermigrate sync: rounds' AND "
            "clock_timestamp() - xact_start > interval '3.2 s'"
        )
        await_true(lambda: bool(pair.on_monolith(is_older)[0][0]))
        holder.rollback()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert [each["event"] for each in done.events].count("sync_waits") == 0
    require_end(pair)
