"""A cutover or rollback that is disturbed at any of its moments: one owner at most, and home again.

Each test does the same harm at the same moment to a cutover and then to a rollback, under writers
who follow the owner and before a watcher who looks for a second one. What the disturbed command
left is brought home by the next one: the same again, or `--abort`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import psycopg
import pytest

from tests.faults.fix_changing import ANY_SESSION, COMMANDS, EVENTS, Changing, Command, sides_of
from tests.faults.fix_copying import At
from tests.faults.fix_syncing import told
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side, TestServers

Fault = Callable[[Changing, TestServers, RunningCli], object]


def cut(side: Side) -> Fault:
    """Reset every connection to a side."""
    return lambda changing, _, __: changing.syncing.proxies[side].cut()


def end_backends(side: Side) -> Fault:
    """Have an administrator of a side end our sessions."""
    return lambda changing, _, __: changing.syncing.end_backends(side, ANY_SESSION)


def restart(side: Side) -> Fault:
    """Switch a side's server off and on again."""

    def act(_: Changing, servers: TestServers, __: RunningCli) -> None:
        server = servers.of(side).own
        assert server is not None
        server.kill()
        server.start()

    return act


FAULTS: Mapping[str, Fault] = {
    "killed": lambda _, __, running: running.kill(),
    **{f"{side} cut": cut(side) for side in SIDES},
    **{f"{side} backends ended": end_backends(side) for side in SIDES},
    **{f"{side} restarted": restart(side) for side in SIDES},
}
# How a disturbed change may end: done in spite of it, undone, or to be gone on with.
ENDS = {0, 5, 7, 8, -9}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("events", [EVENTS[:4], EVENTS[4:]], ids=["frozen", "let go"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_of_owner_that_is_disturbed_is_brought_home(
    changing: Changing, postgres_servers: TestServers, fault: str, events: Sequence[str]
) -> None:
    if "restarted" in fault and not all(postgres_servers.of(side).is_ours for side in SIDES):
        pytest.skip("needs servers of its own, to kill them")
    changing.prove()
    with changing.traffic() as traffic, changing.watched():
        for number, event in enumerate(events):
            for command in COMMANDS:
                disturb(
                    changing,
                    command,
                    (event, 1, lambda it: FAULTS[fault](changing, postgres_servers, it)),
                )
                # Half of them go back first, the others go on.
                changing.bring_home(command, is_aborting=number % 2 == COMMANDS.index(command))
                traffic.wait_for_commits(traffic.commits + 5)
        changing.settle(traffic)


def disturb(changing: Changing, command: Command, at: At) -> None:
    """Have something happen to a change of owner; what it says at its end has to be so."""
    ended = changing.start(command, at=at).finish()
    assert at[0] in {each["event"] for each in ended.events}, told(ended)
    assert "Traceback" not in ended.stderr, told(ended)
    source, target = sides_of(command)
    said = {0: target, 7: source}
    assert ended.exit_code in ENDS, told(ended)
    assert changing.owner() == said.get(ended.exit_code, changing.owner()), told(ended)


def test_the_watcher_sees_a_second_owner(changing: Changing) -> None:
    changing.prove()
    changing.syncing.on(
        "service",
        "ALTER TABLE public.orders DISABLE TRIGGER ordermigrate_fence",
    )
    with pytest.raises(AssertionError, match="both take writes"), changing.watched() as watcher:
        watcher.join(2)
    assert watcher.seen["both"]


def test_the_writers_see_a_write_that_was_left_behind(changing: Changing) -> None:
    changing.prove()
    with (  # noqa: PT012  the end of the traffic raises it, too
        pytest.raises(AssertionError, match="not as acknowledged"),
        changing.traffic(kinds=["insert"]) as traffic,
    ):
        traffic.wait_for_commits(5)
        # Fenced off by hand, with nothing brought over: whoever goes on there misses its rows.
        with psycopg.connect(changing.dsns["monolith"]) as connection:
            connection.execute("ALTER TABLE public.orders ENABLE ALWAYS TRIGGER ordermigrate_fence")
        traffic.wait_until(lambda it: it.places[1] > 0)
