"""A copy that is killed or interrupted, whenever that is, goes on where it was.

A writer is at work on the monolith meanwhile, unless the test counts the rows.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess

import pytest

from tests.faults.fix_copying import INDEXES, Copying, MakeCopying, names
from tests.fix_orders import RunningCli

CHUNKS = 4

# Everything that has to come back as it was: a unique constraint with a comment, an index that is
# the replica identity, one that CLUSTER uses, a storage parameter, a CHECK that old rows may break.
RICH_SERVICE = """
ALTER TABLE public.orders ADD CONSTRAINT "External, once" UNIQUE (external_order_id, id);
COMMENT ON CONSTRAINT "External, once" ON public.orders IS 'told by the broker';
COMMENT ON INDEX public.idx_orders_symbol IS 'for the ticker';
CREATE UNIQUE INDEX orders_replicated ON public.orders (id);
ALTER TABLE public.orders REPLICA IDENTITY USING INDEX orders_replicated;
ALTER TABLE public.orders CLUSTER ON idx_orders_created_at;
CREATE INDEX partial_and_filled ON public.orders (lower(symbol)) WITH (fillfactor = 70)
    WHERE status <> 'EXECUTED';
ALTER TABLE public.orders ADD CONSTRAINT orders_are_new CHECK (retry_count < 1000) NOT VALID;
"""
RICH_MONOLITH = (
    "ALTER TABLE public.orders ADD CONSTRAINT orders_are_new CHECK (retry_count < 1000) NOT VALID"
)


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(is_written_to=True)


@pytest.mark.parametrize(
    ("event", "nth"),
    [
        ("prepared", 1),
        ("snapshot_taken", 1),
        ("chunk_copied", 1),
        ("chunk_copied", CHUNKS),
        ("index_started", 1),
        ("index_built", INDEXES),
        ("analyzed", 1),
    ],
)
def test_a_killed_copy_resumes_without_duplicates(copying: Copying, event: str, nth: int) -> None:
    killed = copying.run(at=(event, nth, RunningCli.kill))
    assert killed.exit_code == -signal.SIGKILL, killed.stderr
    assert names(killed).count(event) >= nth
    done = copying.finish()
    again = names(done)
    assert names(killed).count("chunk_copied") + again.count("chunk_copied") <= CHUNKS
    if event in {"index_started", "index_built", "analyzed"}:
        assert "chunk_copied" not in again


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_copy_killed_at_every_step_in_turn_gets_done_and_its_service_is_as_it_was(
    make_copying: MakeCopying,
) -> None:
    # With one worker each run gets exactly one step further before it is killed.
    copying = make_copying(
        scripts=(RICH_MONOLITH, RICH_SERVICE), limits={"workers": 1}, is_written_to=True
    )
    built = len([line for line in copying.definitions_before if line.startswith("index ")])
    assert built == INDEXES + 3
    steps = ["prepared", "indexes_dropped", "snapshot_taken", *["chunk_copied"] * CHUNKS]
    steps += ["rows_copied", "subtracted", *["index_built"] * (built - 2), "analyzed"]
    reached = 0
    for step in steps:
        ended = copying.run(at=(step, 1, RunningCli.kill))
        assert ended.exit_code in {-signal.SIGKILL, 0}, ended.stderr
        reached += step in names(ended)
    assert reached >= len(steps) - 2  # two steps at a time where the kill came late
    copying.finish()


def test_a_copy_killed_with_chunks_on_their_way_leaves_nothing_of_them(
    make_copying: MakeCopying,
) -> None:
    copying = make_copying(behind=["service"])
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    running.kill()
    running.finish()
    copying.proxies["service"].heal()
    copying.proxies["service"].wait_until(lambda proxy: proxy.open_connections == 0)
    committed = copying.ledger_rows()
    done = copying.finish()
    assert (
        committed + sum(event["rows"] for event in done.events if event["event"] == "chunk_copied")
        == copying.ledger_rows()
    )


def test_a_copy_killed_before_its_primary_key_is_back_begins_again_with_it(
    make_copying: MakeCopying,
) -> None:
    # Its index stands there, but is nobody's constraint yet: not what is to be remembered.
    copying = make_copying(behind=["service"], is_written_to=True)
    running = copying.start()
    copying.proxies["service"].when_seen(b"PRIMARY KEY USING INDEX", running.kill)
    assert running.finish().exit_code == -signal.SIGKILL
    assert copying.on_service("SELECT to_regclass('public.orders_pkey') IS NOT NULL") == [(True,)]
    copying.finish("--restart")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_copy_killed_at_any_time_at_all_resumes(copying: Copying) -> None:
    # Between events, too: each run is killed a little later after its first event than the last.
    delay_seconds = 0.02
    ended = -signal.SIGKILL
    while ended == -signal.SIGKILL:
        running = copying.start()
        with contextlib.suppress(AssertionError):  # it was killed after its very last step
            running.wait_for_event("snapshot_taken")
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(delay_seconds)
        running.kill()
        ended = running.finish().exit_code
        delay_seconds *= 1.7
    assert ended == 0
    copying.finish()


@pytest.mark.parametrize(
    ("name", "event"),
    [("SIGINT", "chunk_copied"), ("SIGTERM", "index_started")],
)
def test_an_interrupted_copy_says_so_and_resumes(copying: Copying, name: str, event: str) -> None:
    def interrupt(running: RunningCli) -> None:
        running.process.send_signal(signal.Signals[name])

    stopped = copying.run(at=(event, 1, interrupt))
    assert stopped.exit_code == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert re.search(r"ordermigrate: Interrupted\. Run the same command again", stopped.stderr)
    assert copying.on_service(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ordermigrate%' "
        "AND state LIKE 'idle in transaction%'"
    ) == [(0,)]
    copying.finish()


def test_a_finished_copy_run_again_does_nothing(make_copying: MakeCopying) -> None:
    copying = make_copying()
    copying.finish()
    rows = (
        "SELECT pg_relation_filenode('public.orders'), sum(xmin::text::bigint), "
        "array_agg(DISTINCT xmax::text) FROM public.orders"
    )
    before = copying.on_service(rows), copying.definitions()
    again = copying.run("--json")
    assert again.exit_code == 0
    assert again.json["outcome"] == "already_copied"
    assert names(again) == []
    assert (copying.on_service(rows), copying.definitions()) == before
