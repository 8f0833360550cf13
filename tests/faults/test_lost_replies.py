"""A COMMIT that the server has done and the client never hears of: found, and not done again.

One worker, so that the COMMIT which follows a statement is the one of its own transaction.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.fix_copying import BUILDER, Copying, MakeCopying, in_background, names
from tests.fix_faults import FaultProxy
from tests.fix_postgres import Side

CHUNKS = 4


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["monolith", "service"], limits={"workers": 1})


def at_commit_after(
    proxy: FaultProxy, statement: bytes, nth: int, fault: Callable[[], None]
) -> None:
    """Do something when the COMMIT has passed that follows the nth statement of a kind."""
    left = nth

    def count() -> None:
        nonlocal left
        left -= 1
        if left:
            proxy.when_seen(statement, count)
        else:
            proxy.when_seen(b"COMMIT", fault)

    proxy.when_seen(statement, count)


def cut_when_it_is_lost(proxy: FaultProxy) -> None:
    """Wait until the server has answered in vain; then end the connections, and be well again."""
    proxy.wait_until(lambda proxy: proxy.swallowed_bytes > 0)
    proxy.cut()
    proxy.heal()


RECORDED = b"copied_bytes = $4"  # what marks a chunk as copied, before its COMMIT


@pytest.mark.parametrize(
    ("side", "statement", "nth"),
    [
        ("service", b"CREATE TABLE IF NOT EXISTS ordermigrate.run", 1),
        ("monolith", b"CREATE TABLE IF NOT EXISTS ordermigrate.side", 1),
        ("service", b"DROP INDEX", 1),
        ("service", RECORDED, 1),
        ("service", BUILDER, 2),
        ("service", b"PRIMARY KEY USING INDEX", 1),
    ],
    ids=[
        "the service's preparation",
        "the monolith's preparation",
        "indexes dropped",
        "the first chunk",
        "an index",
        "the primary key",
    ],
)
def test_a_commit_whose_reply_is_lost_is_not_done_twice(
    copying: Copying, side: Side, statement: bytes, nth: int
) -> None:
    proxy = copying.proxies[side]
    at_commit_after(proxy, statement, nth, proxy.swallow_replies)
    running = copying.start()
    with in_background(lambda: cut_when_it_is_lost(proxy)):
        result = running.finish()
    copying.recover(result)
    if statement == RECORDED:
        # The chunk whose reply was lost is never told of: it was found in the ledger.
        assert result.exit_code == 0, result.stderr
        assert names(result).count("chunk_copied") == CHUNKS - 1


def test_a_commit_that_is_never_answered_is_given_up_and_found_done(copying: Copying) -> None:
    copying.configure(stall_timeout_seconds=1.0, service={"statement_timeout_seconds": 1.0})
    proxy = copying.proxies["service"]
    at_commit_after(proxy, RECORDED, 1, proxy.swallow_replies)
    running = copying.start()
    proxy.wait_until(lambda proxy: proxy.swallowed_bytes > 0)
    before = proxy.open_connections
    # It closes the stream when it gives up; then the network is well again.
    proxy.wait_until(lambda proxy: proxy.open_connections < before)
    proxy.heal()
    result = running.finish()
    assert names(result).count("chunk_copied") <= CHUNKS - 1
    copying.recover(result)


def test_a_commit_cut_off_on_its_way_is_done_once_whether_it_arrived_or_not(
    copying: Copying,
) -> None:
    proxy = copying.proxies["service"]
    is_cut = False

    def cut() -> None:
        nonlocal is_cut
        proxy.cut()
        is_cut = True

    at_commit_after(proxy, RECORDED, 2, cut)
    result = copying.run()
    assert is_cut
    copying.recover(result)
