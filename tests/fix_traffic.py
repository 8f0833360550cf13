"""Writers that go on while a migration does, and know exactly what was promised to them.

Each writer is a thread with a connection and rows of its own, so that its acknowledged commits
alone say what these rows are. A commit whose reply was lost leaves two possible states; the next
connection, made after the old one's backend has ended, looks which of them is there. Servers may be
killed and networks cut under the writers: they come back. Where they know of a second database,
whoever is refused by the fence goes on there, and looks first whether all that was acknowledged has
come along. What they choose to do follows from the seed; keys do not, so that a second traffic
never meets the first one's.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tests.fix_family import (
    BEGIN,
    COMPOSED,
    KINDS,
    LINES,
    NOTE_KINDS,
    NOTES,
    ORDERS,
    SIMPLE,
    TRUNCATE,
    USERS_EACH,
    Key,
    Kind,
    Row,
    Shape,
    State,
    Work,
    copy_state,
)
from tests.fix_orders import USERS

FENCED = "OM001"
_SETTINGS = (
    "SET client_encoding = 'UTF8'; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; "
    "SET bytea_output = 'hex'; SET extra_float_digits = 3"
)
# The server ends the session, or does not let us in: shutdown, crash, recovery, too many clients.
_SESSION_IS_OVER = ("08", "57P", "25P03", "53300")
_ROLLED_BACK = "40"  # serialization failures, deadlocks
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.5
_REFUSED_PAUSE_SECONDS = 0.03
_STOP_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
_NOTES_PAUSE_SECONDS = 0.02
_SHOWN = 10


# ------------------------------------------------------------------------------------ one writer


def read_rows(
    connection: psycopg.Connection, shape: Shape, where: str = "true"
) -> Iterator[tuple[Key, Row]]:
    """Read a table's rows, every value as text."""
    values = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in shape.columns]
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(values), sql.SQL(shape.name), sql.SQL(where)
    )
    for found in connection.execute(query):
        row = dict(zip(shape.columns, found, strict=True))
        yield shape.key(row), row


@dataclass(frozen=True)
class Part:
    """What one writer does, and which rows are its own."""

    name: str
    number: int
    kinds: Mapping[str, Kind]
    own: Mapping[Shape, str]  # a condition by table
    some: Sequence[str] = ()  # what composed kinds choose among
    pause_seconds: float = 0.0
    every_seconds: float = 0.0  # a steady pace; 0 for none

    def read(self, connection: psycopg.Connection) -> State:
        """Read the rows of its own."""
        own = self.own.items()
        return {shape.name: dict(read_rows(connection, shape, where)) for shape, where in own}


class _SessionLost(Exception):
    """The session is over; whether its COMMIT was done is for the next one to find out."""


class _Refused(Exception):
    """The fence has refused a write: somebody else owns the tables."""


class _Writer(threading.Thread):
    """One transaction after the other, until it is stopped.

    `states` has one entry, or two while it is not known whether a commit was done: before, after.
    """

    def __init__(self, traffic: Traffic, part: Part, seed: int) -> None:
        super().__init__(name=part.name, daemon=True)
        self.part = part
        self.states: list[State] = []
        self._traffic = traffic
        self._application = f"{part.name} {uuid.uuid4().hex[:12]}"
        self._place = 0  # which of the databases it writes to
        self._deleted: dict[str, None] = {}  # a set that keeps its order
        self._rng = random.Random(f"{seed} {part.name}")

    def run(self) -> None:
        """Write, reconnect, write; what is not expected is for the test's thread to raise."""
        traffic, pause = self._traffic, _FIRST_PAUSE_SECONDS
        try:
            while not traffic.is_over.is_set() or self._is_unsettled():
                try:
                    with closing(self._connect()) as connection:
                        self._settle(connection)
                        pause = _FIRST_PAUSE_SECONDS
                        self._write(connection)
                except _Refused:
                    # Where the other refuses as well nobody owns the tables, and it comes back.
                    self._place = (self._place + 1) % len(traffic.dsns)
                    traffic.is_over.wait(_REFUSED_PAUSE_SECONDS)
                except _SessionLost:
                    traffic.count("lost")
                    event = traffic.is_given_up if traffic.is_over.is_set() else traffic.is_over
                    event.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001  it is raised in the test's thread
            traffic.fail(error)

    def _is_unsettled(self) -> bool:
        return len(self.states) > 1 and not self._traffic.is_given_up.is_set()

    def _connect(self) -> psycopg.Connection:
        try:
            connection = psycopg.connect(
                self._traffic.dsns[self._place],
                autocommit=True,
                connect_timeout=5,
                application_name=self._application,
            )
        except psycopg.OperationalError as error:
            raise _SessionLost from error
        try:
            connection.execute(_SETTINGS)
            # A backend that has not noticed yet that its client is gone may hold locks, and may
            # be about to commit: nothing can be said of the rows before it has ended.
            has_older = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s AND pid <> pg_backend_pid()",
                [self._application],
            ).fetchall()
        except psycopg.Error as error:
            is_over = is_session_over(connection, error)
            connection.close()
            if is_over:
                raise _SessionLost from error
            raise
        if has_older:  # it is ending: the next attempt will see it gone
            connection.close()
            raise _SessionLost
        return connection

    def _settle(self, connection: psycopg.Connection) -> None:
        """Find out which of the possible states is there."""
        try:
            found = self.part.read(connection)
        except psycopg.OperationalError as error:
            raise _SessionLost from error
        if found not in self.states:
            said = find_differences(self.states[0], found)
            raise AssertionError("\n".join([f"{self.name}: not as acknowledged", *said[:_SHOWN]]))
        if len(self.states) > 1:
            self._traffic.count("settled")
        self.states = [found]

    def _write(self, connection: psycopg.Connection) -> None:
        over, part = self._traffic.is_over, self.part
        due = time.monotonic()
        while not over.is_set():
            self._transact(connection, self._rng.choice(list(part.kinds)))
            # Who was held up goes on at the same pace and does not catch up.
            due = max(due + part.every_seconds, time.monotonic() - part.every_seconds)
            pause_seconds = due - time.monotonic() if part.every_seconds else part.pause_seconds
            if pause_seconds > 0:
                over.wait(pause_seconds)

    def _transact(self, connection: psycopg.Connection, kind: str) -> None:
        before = self.states[0]
        work = Work(
            connection,
            copy_state(before),
            self._rng,
            self.part.number,
            [*self._deleted],
            self.part.some,
            self._traffic.is_over.wait,
        )
        try:
            # The usual level is not named: a fault that waits for "COMMIT" would see COMMITTED.
            connection.execute(BEGIN.get(kind, b"BEGIN"), prepare=False)
            self.part.kinds[kind](work)
            work.finish()
            if work.is_undone:
                connection.execute("ROLLBACK")
                self._traffic.count("rolled back")
                return
            self.states = [before, work.state]
            # Its text is on the wire each time, for a fault proxy to see.
            reply = connection.execute("COMMIT", prepare=False).statusmessage
        except psycopg.Error as error:
            if is_session_over(connection, error):
                raise _SessionLost from error
            self.states = [before]
            self._forgive(connection, error)
            return
        if reply != "COMMIT":
            raise AssertionError(f"{self.name}: {kind} ended with {reply}")
        self.states = [work.state]
        self._note_deleted(before, work.state)
        self._traffic.acknowledge(kind, self._place)

    def _forgive(self, connection: psycopg.Connection, error: psycopg.Error) -> None:
        """Count a transaction that was refused or rolled back by the server; raise any other."""
        state = error.diag.sqlstate or ""
        if state != FENCED and FENCED not in str(error) and not state.startswith(_ROLLED_BACK):
            raise error
        is_aborted = state.startswith(_ROLLED_BACK)
        self._traffic.count("aborted" if is_aborted else "refused")
        try:
            connection.execute("ROLLBACK")
        except psycopg.OperationalError as lost:
            raise _SessionLost from lost
        if not is_aborted:
            if len(self._traffic.dsns) > 1:
                raise _Refused
            self._traffic.is_over.wait(_FIRST_PAUSE_SECONDS)

    def _note_deleted(self, before: State, after: State) -> None:
        for key in before.get(ORDERS.name, {}).keys() - after.get(ORDERS.name, {}).keys():
            self._deleted[key[0]] = None
        for key in after.get(ORDERS.name, {}):
            self._deleted.pop(key[0], None)


def is_session_over(connection: psycopg.Connection, error: psycopg.Error) -> bool:
    """Tell whether an error means that the connection is gone, or just going."""
    return connection.closed or (error.diag.sqlstate or "").startswith(_SESSION_IS_OVER)


# ----------------------------------------------------------------------------------- all of them


def find_differences(expected: State, found: State) -> list[str]:
    """Name each row that was lost or invented, and each column that was changed."""
    said = []
    for table, rows in expected.items():
        there = found[table]
        said += [f"lost: {table} {key}" for key in rows.keys() - there.keys()]
        said += [f"invented: {table} {key}" for key in there.keys() - rows.keys()]
        said += [
            f"changed: {table} {key}: {name} is {there[key][name]!r:.80} and was {value!r:.80}"
            for key in rows.keys() & there.keys()
            for name, value in rows[key].items()
            if there[key][name] != value
        ]
    return said


class Traffic:
    """Writers that run, and what they were promised.

    Attributes:
        counts: Of what happened, besides commits: "lost" sessions (ended, or not let in),
            "settled" commits whose reply was lost, "aborted" by the server, "refused" by the
            fence, "rolled back" on purpose.
        done: Acknowledged commits by kind.
        places: The same by database, in the order of `dsns`.
        longest_pause_seconds: The longest time between two acknowledged commits, whoever's.

    """

    def __init__(
        self, dsns: Sequence[str], parts: Sequence[Part], shapes: Sequence[Shape], seed: int
    ) -> None:
        self.dsns = tuple(dsns)
        self.places: Counter[int] = Counter()
        self.longest_pause_seconds = 0.0
        self._acknowledged_at: float | None = None
        self.counts: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.is_over = threading.Event()
        self.is_given_up = threading.Event()
        self._shapes = shapes
        self._changed = threading.Condition()
        self._errors: list[BaseException] = []
        self._writers = [_Writer(self, part, seed) for part in parts]
        self._others: dict[str, dict[Key, int]] = {}
        with psycopg.connect(self.dsns[0]) as connection:
            self._take_over(connection)
        for writer in self._writers:
            writer.start()

    def _take_over(self, connection: psycopg.Connection) -> None:
        """Read what is there: each writer's rows, and a hash of every row that is nobody's."""
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(_SETTINGS)
        owned: dict[str, set[Key]] = {shape.name: set() for shape in self._shapes}
        for writer in self._writers:
            writer.states = [writer.part.read(connection)]
            for table, rows in writer.states[0].items():
                owned[table].update(rows)
        for shape in self._shapes:
            self._others[shape.name] = {
                key: hash(tuple(row.values()))
                for key, row in read_rows(connection, shape)
                if key not in owned[shape.name]
            }

    # What writers tell

    def acknowledge(self, kind: str, place: int = 0) -> None:
        """Count a commit that a server has confirmed."""
        now = time.monotonic()
        with self._changed:
            pause_seconds = now - (self._acknowledged_at or now)
            self.longest_pause_seconds = max(self.longest_pause_seconds, pause_seconds)
            self._acknowledged_at = now
            self.places[place] += 1
            self.done[kind] += 1
            self._changed.notify_all()

    def count(self, name: str) -> None:
        """Count something that happened besides."""
        with self._changed:
            self.counts[name] += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Keep what no writer may meet, and end the traffic."""
        with self._changed:
            self._errors.append(error)
            self.is_over.set()
            self._changed.notify_all()

    # What tests ask

    @property
    def commits(self) -> int:
        """How many commits have been acknowledged so far."""
        with self._changed:
            return self.done.total()

    def wait_until(
        self, is_true: Callable[[Traffic], bool], *, timeout_seconds: float = 30.0
    ) -> None:
        """Wait until something is true, such as `lambda t: t.counts["lost"] > 0`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._errors or is_true(self), timeout_seconds):
                said = f"{dict(self.counts)}, commits {dict(self.done)}"
                raise TimeoutError(f"not true of the traffic in {timeout_seconds:g} s: {said}")
            if self._errors:
                raise self._errors[0]

    def wait_for_commits(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Wait until so many commits, over all, have been acknowledged.

        `traffic.wait_for_commits(traffic.commits + 50)` waits for fifty more.
        """
        self.wait_until(lambda it: it.done.total() >= count, timeout_seconds=timeout_seconds)

    def stop(self) -> None:
        """End all writers and raise the first error that one of them met; may be repeated."""
        self.halt()
        if self._errors:
            raise self._errors[0]
        if stuck := [writer.name for writer in self._writers if writer.is_alive()]:
            raise AssertionError(f"still waiting for the server: {', '.join(stuck)}")

    def halt(self) -> None:
        """End all writers; a commit in doubt is looked up if the server answers in time."""
        self.is_over.set()
        self._join(_SETTLE_SECONDS)
        self.is_given_up.set()
        self._join(_STOP_SECONDS)

    def _join(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        for writer in self._writers:
            writer.join(max(0.0, deadline - time.monotonic()))

    def require_all_on(self, dsn: str, *, only_ours: bool = False) -> None:
        """Require that a database has what was acknowledged, and nothing else.

        Args:
            dsn: The monolith or the service; the traffic has to be stopped.
            only_ours: Leave out rows that no writer owns; else they have to be as they were
                when the traffic began.

        Raises:
            AssertionError: Rows were lost, changed or invented; the first few are named.

        """
        if any(writer.is_alive() for writer in self._writers):
            raise RuntimeError("stop the traffic first")
        with psycopg.connect(dsn) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute(_SETTINGS)
            said = [line for writer in self._writers for line in self._judge(writer, connection)]
            if not only_ours:
                said += self._judge_others(connection)
        if said:
            more = f"\nand {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
            raise AssertionError("not what was acknowledged:\n" + "\n".join(said[:_SHOWN]) + more)

    def _judge(self, writer: _Writer, connection: psycopg.Connection) -> list[str]:
        found = writer.part.read(connection)
        return min((find_differences(state, found) for state in writer.states), key=len)

    def _judge_others(self, connection: psycopg.Connection) -> list[str]:
        said = []
        for table, others in self._others.items():
            (shape,) = (shape for shape in self._shapes if shape.name == table)
            ours = {
                key
                for writer in self._writers
                for state in [*writer.states, writer.part.read(connection)]
                for key in state.get(table, {})
            }
            found = {
                key: hash(tuple(row.values()))
                for key, row in read_rows(connection, shape)
                if key not in ours
            }
            said += [f"lost: {table} {key}" for key in others.keys() - found.keys()]
            said += [f"invented: {table} {key}" for key in found.keys() - others.keys()]
            both = others.keys() & found.keys()
            said += [f"changed: {table} {key}" for key in both if others[key] != found[key]]
        return said


@contextmanager
def _running(traffic: Traffic) -> Iterator[Traffic]:
    try:
        yield traffic
    except BaseException:
        traffic.halt()  # the test's own error is the one to be seen
        raise
    traffic.stop()


@contextmanager
def live_traffic(
    dsn: str,
    *,
    other_dsn: str | None = None,
    writers: int = 4,
    seed: int = 1,
    kinds: Sequence[str] = KINDS,
    pause_seconds: float = 0.0,
    notes_pause_seconds: float = _NOTES_PAUSE_SECONDS,
) -> Iterator[Traffic]:
    """Write to the shop family until the end of the block, or until `stop`.

    Args:
        dsn: The database to write to.
        other_dsn: Where to go on when the fence refuses, and back again.
        writers: How many threads; each takes over the orders that are there of its users.
        seed: What the writers' choices follow from.
        kinds: Of KINDS; with "truncate" one more writer has `order_notes` for itself.
        pause_seconds: Between two transactions of one writer.
        notes_pause_seconds: The same for the writer that truncates, where that is longer.

    """
    if unknown := set(kinds) - {*KINDS, TRUNCATE}:
        raise ValueError(f"no such kinds: {sorted(unknown)}")
    known = {**SIMPLE, **COMPOSED}
    chosen = {name: known[name] for name in kinds if name != TRUNCATE}
    some = [name for name in chosen if name in SIMPLE] or list(SIMPLE)
    parts = []
    for number in range(writers if chosen else 0):
        users = f"user_id / {USERS_EACH} = {number}"
        orders = sql.SQL("SELECT id FROM public.orders WHERE {}").format(sql.SQL(users))
        own = {ORDERS: users, LINES: f"order_id IN ({orders.as_string(None)})"}
        parts.append(Part(f"shop writer {number}", number, chosen, own, some, pause_seconds))
    if TRUNCATE in kinds:
        # Each TRUNCATE makes new files: a rare thing, and no share of two cores.
        pause_seconds = max(pause_seconds, notes_pause_seconds)
        notes = Part("notes writer", writers, NOTE_KINDS, {NOTES: "true"}, (), pause_seconds)
        parts.append(notes)
    dsns = [dsn] if other_dsn is None else [dsn, other_dsn]
    with _running(Traffic(dsns, parts, (ORDERS, LINES, NOTES), seed)) as traffic:
        yield traffic


# ---------------------------------------------------------------------------- the hub_orders family

_HUB_COLUMNS = (
    "id user_id symbol order_type order_side quantity price status created_at updated_at "
    "executed_at execution_price market_price_at_submission market_data_timestamp "
    "failure_reason retry_count processing_worker_id external_order_id"
)
HUB_ORDERS = Shape("public.orders", tuple(_HUB_COLUMNS.split()))


@contextmanager
def hub_traffic(
    dsn: str, rate_per_second: float = 50.0, *, users: int = USERS, seed: int = 1
) -> Iterator[Traffic]:
    """Write to a hub's orders at a steady rate: place, process, execute, now and then delete.

    Args:
        dsn: The database to write to.
        rate_per_second: How many transactions.
        users: Orders are those of the users 1 to this.
        seed: What the writer's choices follow from.

    """
    worker = f"live {uuid.uuid4().hex[:12]}"
    returned = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(name)) for name in HUB_ORDERS.columns
    )

    def step(work: Work) -> None:
        """Do what is next: a row's last columns are the trigger's, so it is read as returned."""
        rows = work.state[HUB_ORDERS.name]
        by_status = {str(row["status"]): str(row["id"]) for row in rows.values()}
        values: list[Any]
        if it := by_status.get("PENDING"):
            change, values = "status = 'PROCESSING', retry_count = retry_count + 1", [it]
        elif it := by_status.get("PROCESSING"):
            change = "status = 'EXECUTED', executed_at = now(), execution_price = %s"
            values = [work.rng.randrange(1, 10_000), it]
        elif len(rows) > 10 and work.rng.random() < 0.2:
            key = work.rng.choice(list(rows))
            work.run("DELETE FROM public.orders WHERE id = %s", key)
            del rows[key]
            return
        else:
            done = work.run(
                "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity,"
                " processing_worker_id) VALUES (%s, %s, 'LIVE', 'MARKET', 'BUY', %s, %s)"
                " RETURNING {returned}",
                [
                    str(uuid.uuid4()),
                    work.rng.randint(1, users),
                    work.rng.randint(1, 100),
                    worker,
                ],
                returned=returned,
            )
            remember(work, done)
            return
        done = work.run(
            "UPDATE public.orders SET {change} WHERE id = %s RETURNING {returned}",
            values,
            change=sql.SQL(change),
            returned=returned,
        )
        remember(work, done)

    def remember(work: Work, done: psycopg.Cursor[tuple[Any, ...]]) -> None:
        rows = [dict(zip(HUB_ORDERS.columns, found, strict=True)) for found in done]
        work.remember(HUB_ORDERS, rows)

    own = {HUB_ORDERS: f"processing_worker_id = '{worker}'"}
    part = Part("hub writer", 0, {"step": step}, own, every_seconds=1 / rate_per_second)
    with _running(Traffic([dsn], [part], (HUB_ORDERS,), seed)) as traffic:
        yield traffic
