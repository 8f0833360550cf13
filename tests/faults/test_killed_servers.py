"""A server that loses power in mid-copy; what it had committed is there when it is back."""

from __future__ import annotations

import pytest

from tests.faults.fix_copying import Copying, MakeCopying, names
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side, TestServers


@pytest.fixture
def copying(make_copying: MakeCopying, postgres_servers: TestServers) -> Copying:
    if not all(postgres_servers.of(side).is_ours for side in SIDES):
        pytest.skip("needs servers of its own, to kill them")
    return make_copying(is_written_to=True)


@pytest.mark.parametrize(
    ("side", "event"),
    [("monolith", "chunk_copied"), ("service", "chunk_copied"), ("service", "index_started")],
)
def test_a_server_that_is_back_in_time_is_waited_for(
    copying: Copying, postgres_servers: TestServers, side: Side, event: str
) -> None:
    server = postgres_servers.of(side).own
    assert server is not None

    def kill(_: RunningCli) -> None:
        server.kill()
        server.start()

    done = copying.run(at=(event, 1, kill))
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_stays_away_is_told_and_the_next_run_resumes(
    copying: Copying, postgres_servers: TestServers, side: Side
) -> None:
    server = postgres_servers.of(side).own
    assert server is not None
    copying.configure(retry_deadline_seconds=1.0)
    gone = copying.run(at=("chunk_copied", 2, lambda _: server.kill()))
    server.start()
    assert gone.exit_code == 5, (gone.exit_code, gone.stderr)
    assert side in gone.stderr.splitlines()[-1]
    done = copying.finish()
    assert names(done).count("chunk_copied") <= 2
