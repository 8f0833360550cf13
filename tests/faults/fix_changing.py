"""A shop that is followed and proved, whose owner is to change, while faults are done to that.

Its writers follow the owner: whom the fence refuses goes on at the other database, and finds there
what was acknowledged to it, or the test fails. Beside them a watcher looks, without a pause and
without a line of the product, whether both databases would take a write at the same instant.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol

import psycopg
import pytest

from tests.faults.fix_copying import At
from tests.faults.fix_syncing import (
    NOTES_PAUSE_SECONDS,
    PAUSE_SECONDS,
    WRITERS,
    MakeSyncing,
    Syncing,
    told,
)
from tests.fix_family import KINDS
from tests.fix_orders import CliResult, RunCli, RunningCli
from tests.fix_postgres import SIDES, Side
from tests.fix_traffic import FENCED, Traffic, live_traffic

Command = Literal["cutover", "rollback"]
COMMANDS: tuple[Command, ...] = ("cutover", "rollback")
# In the order in which they happen.
EVENTS = (
    "freezing",
    "frozen",
    "drained",
    "intent_noted",
    "let_go",
    "taken_over",
    "settled",
)
# A statement that asks for a write and touches no row, and for how long it waits behind a lock.
TRY = "UPDATE public.orders SET status = status WHERE false"
TRY_MS = 20
# All that the program has open, whatever it is for.
ANY_SESSION = "ordermigrate %"
# What the program asks the old owner between the two commits.
BETWEEN = b"r.flush_lsn >= asked.position"
# Between two looks nobody is in the way of a freeze.
_LOOK_SECONDS = 0.03
# A freeze waits for no transaction that stays open: that is another story.
SHORT_KINDS = tuple(kind for kind in KINDS if kind != "long")
# Long enough for a lock, short enough for a fault to be noticed soon. No sync is at work beside.
LIMITS: Mapping[str, object] = {
    "max_lag_seconds": 600.0,
    "monolith": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 4.0},
    "service": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 4.0},
}


def sides_of(command: Command) -> tuple[Side, Side]:
    """Return who owns the tables before and after a change."""
    return ("monolith", "service") if command == "cutover" else ("service", "monolith")


# ------------------------------------------------------------------------------------ the watcher


class Watcher(threading.Thread):
    """Try a write on both sides, over and over, in transactions that end with ROLLBACK.

    A write that one side has taken keeps its transaction open while the other is asked: until that
    ends, the first one could still be committed, and its side can neither let go nor be fenced.
    So if both take it, then two owners were there at one instant.

    Attributes:
        seen: How often nobody took it, one side did, or both.
        crimes: What was seen when both did.

    """

    def __init__(self, dsns: dict[Side, str]) -> None:
        super().__init__(name="watcher", daemon=True)
        self.dsns = dsns
        self.seen: Counter[str] = Counter()
        self.crimes: list[str] = []
        self.errors: list[BaseException] = []
        self._is_over = threading.Event()
        self._connections: dict[Side, psycopg.Connection] = {}

    def run(self) -> None:
        """Look until it is stopped."""
        try:
            while not self._is_over.wait(_LOOK_SECONDS):
                self._look(SIDES)
                self._look((SIDES[1], SIDES[0]))
        except BaseException as error:  # noqa: BLE001  it is raised in the test's thread
            self.errors.append(error)
        finally:
            for each in self._connections.values():
                each.close()

    def stop(self) -> None:
        """End it, and raise what it has met."""
        self._is_over.set()
        self.join(30)
        assert not self.is_alive()
        if self.errors:
            raise self.errors[0]
        assert not self.crimes, self.crimes[:3]
        assert self.seen

    def _look(self, order: Sequence[Side]) -> None:
        first, second = order
        try:
            if not self._takes(first):
                self.seen["none" if not self._takes(second) else second] += 1
            elif self._takes(second):
                self.seen["both"] += 1
                rows = [
                    each.execute("SELECT side, epoch, is_hot, intent FROM ordermigrate.side")
                    for each in self._connections.values()
                ]
                self.crimes.append(f"both take writes: {[row.fetchall() for row in rows]}")
            else:
                self.seen[first] += 1
        finally:
            for side in order:
                self._roll_back(side)

    def _takes(self, side: Side) -> bool:
        try:
            if side not in self._connections:
                self._connections[side] = psycopg.connect(
                    self.dsns[side],
                    connect_timeout=2,
                    application_name="watcher",
                    options=f"-c lock_timeout={TRY_MS} -c statement_timeout=2000",
                )
            self._connections[side].execute(TRY.encode())
        except psycopg.errors.LockNotAvailable:
            return False
        except psycopg.OperationalError:
            self._drop(side)
            return False
        except psycopg.Error as error:
            if error.sqlstate != FENCED:
                raise
            return False
        return True

    def _roll_back(self, side: Side) -> None:
        try:
            if side in self._connections:
                self._connections[side].rollback()
        except psycopg.OperationalError:
            self._drop(side)

    def _drop(self, side: Side) -> None:
        if side in self._connections:
            with suppress(psycopg.Error):
                self._connections.pop(side).close()


# -------------------------------------------------------------------------------------- the shop


class Changing:
    """A shop that is followed, and how its owner is changed under faults.

    Attributes:
        syncing: The shop, its proxies, and how to run the program.

    """

    def __init__(self, syncing: Syncing, run_cli: RunCli) -> None:
        self.syncing = syncing
        self._run_cli = run_cli

    @property
    def dsns(self) -> dict[Side, str]:
        """The way to both sides past the proxies."""
        return {side: self.syncing.dsn(side) for side in SIDES}

    # The program

    def start(self, *args: str, at: At | None = None) -> RunningCli:
        """Start a command in a process of its own."""
        return self.syncing.start_cli(*args, at=at)

    def run(self, *args: str) -> CliResult:
        """Run a command in a process of its own, however it ends."""
        return self._run_cli(*args)

    def succeed(self, *args: str) -> dict[str, Any]:
        """Run a command in this process that has to succeed; return its document."""
        return dict(json.loads(self.syncing.run(*args, "--json")))

    def status(self) -> dict[str, Any]:
        """Return what `status` says."""
        return self.succeed("status")

    def owner(self) -> str:
        """Return who owns the tables, by the two rows."""
        hot = [
            side
            for side in SIDES
            if self.syncing.on(side, "SELECT is_hot FROM ordermigrate.side")[0][0]
        ]
        return " and ".join(hot) or "none"

    def prove(self) -> None:
        """Catch up and validate, as a cutover wants it."""
        self.syncing.catch_up()
        self.syncing.run("validate", "--checksums")

    def stand_before(self, command: Command) -> None:
        """Let the side own the tables from which this command takes them."""
        self.prove()
        if command == "rollback":
            assert self.succeed("cutover")["owner"] == "service"

    def heal(self) -> None:
        """Let both networks be well again."""
        for proxy in self.syncing.proxies.values():
            proxy.heal()

    def strand(self, command: Command) -> None:
        """Have a command killed between its two commits: the one has let go, nobody has taken."""
        source, target = sides_of(command)
        proxies = self.syncing.proxies
        proxies[source].when_seen(BETWEEN, proxies[target].stall)
        running = self.start(command)
        running.wait_for_event("let_go")
        running.kill()
        running.finish()
        proxies[target].cut()
        self.heal()
        assert self.owner() == "none"

    def bring_home(self, command: Command, *, is_aborting: bool = False) -> None:
        """Run the next command, and have the owner change for good."""
        source, target = sides_of(command)
        if is_aborting:
            self.abort(command)
            if self.owner() == source:
                self.syncing.catch_up()
        done = self.succeed(command)
        assert done["owner"] == target, done
        self.require_owner(target)

    def abort(self, command: Command) -> None:
        """Undo what was cut off; where it is complete already that is said, and stays."""
        source, target = sides_of(command)
        was = self.owner()
        done = self.run(command, "--abort", "--json")
        if was == target:
            assert done.exit_code == 3, told(done)
            self.require_owner(target)
            return
        assert done.exit_code == 0, told(done)
        assert done.json["owner"] == source, done.json
        self.require_owner(source)

    def require_owner(self, side: Side) -> None:
        """Require that both rows and `status` name this side, and nothing is amiss."""
        said = self.status()
        assert (said["owner"], said["alarm"]) == (side, None), said
        assert self.owner() == side

    # The traffic, the watcher, and the checks at the end

    @contextmanager
    def traffic(
        self, *, begins_at: Side = "monolith", kinds: Sequence[str] = SHORT_KINDS
    ) -> Iterator[Traffic]:
        """Let writers write, wherever they are let."""
        other: Side = "service" if begins_at == "monolith" else "monolith"
        with live_traffic(
            self.dsns[begins_at],
            other_dsn=self.dsns[other],
            writers=WRITERS,
            kinds=kinds,
            pause_seconds=PAUSE_SECONDS,
            notes_pause_seconds=NOTES_PAUSE_SECONDS,
        ) as traffic:
            yield traffic

    @contextmanager
    def watched(self) -> Iterator[Watcher]:
        """Have the watcher look for the length of a block."""
        watcher = Watcher(self.dsns)
        watcher.start()
        try:
            yield watcher
        except BaseException:
            with suppress(BaseException):
                watcher.stop()
            raise
        watcher.stop()

    def settle(self, traffic: Traffic) -> None:
        """Stop the traffic, have the other side catch up, and check everything."""
        traffic.stop()
        traffic.require_all_on(self.dsns[self._owning()])
        self.syncing.settle(traffic)

    def _owning(self) -> Side:
        owner = self.owner()
        assert owner in SIDES, owner
        return "monolith" if owner == "monolith" else "service"


class MakeChanging(Protocol):
    """Make a shop whose owner can change."""

    def __call__(self, **limits: object) -> Changing:
        """Copy it, catch up and validate, with these limits over the usual ones."""
        ...


@pytest.fixture
def make_changing(make_syncing: MakeSyncing, run_cli: RunCli) -> Callable[..., Changing]:
    """Return a factory of shops that are ready for a cutover."""

    def make(**limits: object) -> Changing:
        return Changing(make_syncing(limits={**LIMITS, **limits}), run_cli)

    return make


@pytest.fixture
def changing(make_changing: MakeChanging) -> Changing:
    """A shop that is followed and proved."""
    return make_changing()
