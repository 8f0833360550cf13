"""Whatever writers do and whatever breaks: after a complete round the service is the snapshot.

hypothesis interleaves transactions of several writers, some of them open over rounds, with rounds
whole and in parts, with the death of the line's backends, and with validations. What a complete
round has left on the service is compared with what its own snapshot, imported into a session of
the test's, shows of the monolith; both are read by plain SELECTs.
"""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ordermigrate import following, migration, rounds
from ordermigrate.config import Config
from ordermigrate.digest import Algorithm
from ordermigrate.errors import OrdermigrateError
from ordermigrate.following import Footing
from ordermigrate.progress import Event, RoundHalfCommitted
from ordermigrate.rounds import PartCollides, StructureChanged
from tests.fix_postgres import MakeDatabase, execute
from tests.integration.ground import Heard, make_config

DDL = """
CREATE TABLE public.thing (
    id numeric PRIMARY KEY,
    slot integer CONSTRAINT one_slot_each UNIQUE,
    body json,
    parent numeric REFERENCES public.thing ON UPDATE CASCADE ON DELETE SET NULL,
    seq bigint GENERATED ALWAYS AS IDENTITY
);
CREATE TABLE public.line (
    thing numeric REFERENCES public.thing ON UPDATE CASCADE ON DELETE CASCADE,
    no integer,
    amount integer NOT NULL,
    doubled integer GENERATED ALWAYS AS (amount * 2) STORED,
    PRIMARY KEY (thing, no)
);
"""
ROWS = """
INSERT INTO public.thing (id, slot, body) SELECT g, g, '{}' FROM generate_series(1, 6) AS g;
INSERT INTO public.line SELECT g, 1, g FROM generate_series(1, 6) AS g;
"""
QUERIES = (
    "SELECT id::text, slot, body::text, parent::text, seq FROM public.thing",
    "SELECT thing::text, no, amount, doubled FROM public.line",
)
RESET = "TRUNCATE public.thing, public.line RESTART IDENTITY"
WRITERS = 3
keys = st.integers(1, 8)
images = st.sampled_from(["", ".0", ".00"])  # one key, several ways to write it
writers = st.integers(0, WRITERS - 1)
# What a transaction may run into, as any application's may: it is over then.
COLLISIONS = (
    psycopg.errors.IntegrityError,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
)

Rows = list[list[tuple[Any, ...]]]


def read(connection: psycopg.Connection[Any]) -> Rows:
    return [sorted(connection.execute(query.encode()).fetchall(), key=repr) for query in QUERIES]


def write_statements(kind: str, one: int, other: int, image: str) -> Sequence[str]:
    """Return the statements of one kind of change."""
    return {
        "insert": [
            f"INSERT INTO public.thing (id, slot, body) VALUES ({one}{image}, {other}, '[1]')",
            f"INSERT INTO public.line VALUES ({one}, {other}, 1)",
        ],
        "upsert": [
            (
                f"INSERT INTO public.thing (id, body) VALUES ({one}{image}, '[2]') "
                f"ON CONFLICT (id) DO UPDATE SET body = '[ 2]', slot = NULL"
            )
        ],
        "update": [f"UPDATE public.thing SET body = '[{other}{image}]' WHERE id = {one}"],
        "lines": [
            (
                f"INSERT INTO public.line SELECT id, {other}, {one} FROM public.thing "
                "ON CONFLICT (thing, no) DO UPDATE SET amount = line.amount + 1"
            )
        ],
        "identity": [f"UPDATE public.thing SET seq = DEFAULT WHERE id = {one}"],
        "key": [f"UPDATE public.thing SET id = {other}{image} WHERE id = {one}"],
        "image": [f"UPDATE public.thing SET id = {one}{image} WHERE id = {one}"],
        "line key": [f"UPDATE public.line SET no = no + {other} WHERE thing = {one}"],
        "parent": [f"UPDATE public.thing SET parent = {other} WHERE id = {one}"],
        "delete": [f"DELETE FROM public.thing WHERE id = {one}"],
        "delete and insert": [
            f"DELETE FROM public.thing WHERE id = {one}",
            f"INSERT INTO public.thing (id, slot) VALUES ({one}{image}, {other})",
        ],
        "slot": [f"UPDATE public.thing SET slot = {other} WHERE id = {one}"],
        "swap": [
            (
                f"CREATE TEMP TABLE was ON COMMIT DROP AS "
                f"SELECT id, slot FROM public.thing WHERE id IN ({one}, {other})"
            ),
            f"UPDATE public.thing SET slot = NULL WHERE id IN ({one}, {other})",
            (
                f"UPDATE public.thing AS t SET slot = w.slot FROM was AS w "
                f"WHERE t.id = {one} AND w.id = {other}"
            ),
            (
                f"UPDATE public.thing AS t SET slot = w.slot FROM was AS w "
                f"WHERE t.id = {other} AND w.id = {one}"
            ),
            "DROP TABLE was",
        ],
        "turn": ["UPDATE public.thing SET slot = NULL", "UPDATE public.thing SET slot = 9 - id"],
        "truncate": ["TRUNCATE public.line"],
        "truncate all": ["TRUNCATE public.thing, public.line"],
    }[kind]


KINDS = (
    *("insert", "upsert", "update", "lines", "identity", "key", "image", "line key", "parent"),
    *("delete", "delete and insert", "slot", "swap", "turn", "truncate", "truncate all"),
)


class Migration(RuleBasedStateMachine):
    """Two databases in the middle of a migration, which are the same for all examples."""

    monolith: str
    service: str
    config: Config
    runner: asyncio.Runner

    @initialize()
    def begin(self) -> None:
        execute(self.monolith, f"{RESET}; {ROWS}")
        self.writers = [psycopg.connect(self.monolith) for _ in range(WRITERS)]
        for writer in self.writers:
            writer.execute("SET lock_timeout = '100ms'")
            writer.commit()
        self.reader = psycopg.connect(self.monolith, autocommit=True)
        self.footing: Footing | None = None
        self.open_line = contextlib.AsyncExitStack()
        self.expected: Rows = []
        self.doomed = ""
        self.take_round(None)

    def teardown(self) -> None:
        if not hasattr(self, "reader"):
            return
        for writer in self.writers:
            with contextlib.suppress(psycopg.Error):
                writer.rollback()
        try:
            self.finish()
        finally:
            self.runner.run(self.drop_line())
            for connection in (*self.writers, self.reader):
                connection.close()

    def finish(self) -> None:
        """Nobody writes any more: what the last round leaves is what the monolith has."""
        self.take_round(None)
        with psycopg.connect(self.monolith) as one, psycopg.connect(self.service) as other:
            assert read(one) == read(other)
            waiting = "SELECT count(*) FROM ordermigrate.change_log_{}"
            assert [one.execute(waiting.format(n).encode()).fetchone() for n in (1, 2)] == [
                (0,),
                (0,),
            ]

    # -------------------------------------------------------------------------------- writers

    @rule(
        who=writers,
        writes=st.lists(
            st.tuples(st.sampled_from(KINDS), keys, keys, images), min_size=1, max_size=4
        ),
        is_kept=st.sampled_from([True, True, True, False]),
        ends=st.booleans(),
    )
    def write(
        self, who: int, writes: list[tuple[str, int, int, str]], *, is_kept: bool, ends: bool
    ) -> None:
        """Write in whatever transaction the writer is in, under savepoints that may be undone."""
        writer = self.writers[who]
        for kind, one, other, image in writes:
            try:
                writer.execute("SAVEPOINT here")
                for statement in write_statements(kind, one, other, image):
                    writer.execute(statement.encode(), prepare=False)
                if not is_kept:
                    writer.execute("ROLLBACK TO SAVEPOINT here")
            except COLLISIONS:
                writer.execute("ROLLBACK TO SAVEPOINT here")
        if ends:
            self.end(who, is_kept=True)

    @rule(who=writers, kind=st.sampled_from(["update", "key", "swap"]), one=keys, other=keys)
    def write_as_of_before(self, who: int, kind: str, one: int, other: int) -> None:
        """Begin in an older snapshot than what the writer then meets."""
        self.end(who, is_kept=True)
        writer = self.writers[who]
        writer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        try:
            writer.execute("SELECT FROM public.thing")
        except COLLISIONS:  # somebody's TRUNCATE is open
            writer.rollback()
        self.write(who, [(kind, one, other, ".0")], is_kept=True, ends=False)

    @rule(
        who=writers,
        kind=st.sampled_from(["turn", "swap", "key", "identity", "delete and insert"]),
        one=keys,
        other=keys,
    )
    def write_and_follow(self, who: int, kind: str, one: int, other: int) -> None:
        """Have one change go over by itself, with nothing else to cover it up."""
        self.end(who, is_kept=True)
        self.take_round(None)
        self.write(who, [(kind, one, other, "")], is_kept=True, ends=True)
        self.take_round(None)

    @rule(who=writers, is_kept=st.booleans())
    def end(self, who: int, *, is_kept: bool) -> None:
        writer = self.writers[who]
        if not is_kept:
            writer.rollback()
            return
        try:
            writer.commit()
        except COLLISIONS:
            writer.rollback()

    # --------------------------------------------------------------------------------- rounds

    @rule(max_changes=st.sampled_from([None, None, None, 1, 3]))
    def take_round(self, max_changes: int | None) -> None:
        """Run a round; the line is opened anew where it has to be."""
        for _ in range(8):
            self.release_locks()
            try:
                done = self.runner.run(self.run_round(max_changes))
            except StructureChanged:  # TRUNCATE gives a table another file
                continue
            except PartCollides:
                max_changes = None
                continue
            break
        else:
            pytest.fail("the line could not be kept open")
        if done.is_complete:
            with psycopg.connect(self.service) as connection:
                assert read(connection) == self.expected
        else:
            assert max_changes is not None

    async def run_round(self, max_changes: int | None) -> rounds.Round:
        async def look(snapshot: str) -> None:
            with psycopg.connect(self.monolith) as connection:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
                self.expected = read(connection)
            self.kill_at("before the commits")

        try:
            footing = await self.stand()
            return await rounds.run_round(footing.line, max_changes=max_changes, before_commit=look)
        except BaseException:
            await self.drop_line()
            raise

    async def stand(self) -> Footing:
        if self.footing is None:
            self.footing = await self.open_line.enter_async_context(
                following.stand(self.config, "test", Listener(self))
            )
        return self.footing

    async def drop_line(self) -> None:
        self.footing = None
        with contextlib.suppress(OrdermigrateError, OSError):
            await self.open_line.aclose()
        self.open_line = contextlib.AsyncExitStack()

    def release_locks(self) -> None:
        """A TRUNCATE that is open would keep everybody waiting, us among them."""
        for writer in self.writers:
            held = self.reader.execute(
                "SELECT count(*) FROM pg_locks WHERE pid = %s AND mode = 'AccessExclusiveLock' "
                "AND relation IN ('public.thing'::regclass, 'public.line'::regclass)",
                [writer.info.backend_pid],
            ).fetchone()
            if held != (0,):
                writer.commit()

    # --------------------------------------------------------------------------- what breaks

    @rule(
        who=st.sampled_from(["source", "target", "both", "control"]),
        at=st.sampled_from(["between the commits", "before the commits", "while idle"]),
    )
    def lose_connections(self, who: str, at: str) -> None:
        """End the line's backends; what is done of the round then is done again, or nothing is."""
        self.release_locks()
        with contextlib.suppress(*COLLISIONS):  # an open transaction may have the row
            execute(
                self.monolith,
                "SET lock_timeout = '100ms'; UPDATE public.line SET amount = amount + 1",
            )
        with contextlib.suppress(StructureChanged, OrdermigrateError):
            self.runner.run(self.run_doomed_round(who, at))
        self.doomed = ""
        self.runner.run(self.drop_line())
        self.take_round(None)

    async def run_doomed_round(self, who: str, at: str) -> None:
        line = (await self.stand()).line
        pids = {"source": [line.source.pid], "target": [line.target.pid]}
        pids["control"] = [line.control.pid, line.book.pid]
        pids["both"] = pids["source"] + pids["target"]
        self.victims, self.doomed = pids[who], at
        self.kill_at("while idle")
        await self.run_round(None)

    def kill_at(self, moment: str) -> None:
        if self.doomed != moment:
            return
        for dsn in (self.monolith, self.service):
            # Only ours: the two sides' servers count their processes by themselves.
            execute(
                dsn,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                f"WHERE pid = ANY('{{{','.join(map(str, self.victims))}}}') "
                "AND datname = current_database() AND application_name LIKE 'ordermigrate%'",
            )

    @rule()
    def validate(self) -> None:
        self.release_locks()
        done = self.runner.run(
            migration.validate(self.config, Heard(), algorithm=Algorithm.MD5, max_differences=5)
        )
        assert done.verdict.is_equal, done


class Listener:
    """Kills at the moment when the target has committed and the source has not."""

    def __init__(self, machine: Migration) -> None:
        self.machine = machine

    def report(self, event: Event) -> None:
        if isinstance(event, RoundHalfCommitted):
            self.machine.kill_at("between the commits")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_every_complete_round_the_service_is_the_rounds_snapshot(
    make_database: MakeDatabase,
) -> None:
    monolith, service = (make_database(side, script=DDL) for side in ("monolith", "service"))
    config = make_config(monolith, service, "public.line", "public.thing")
    with asyncio.Runner() as runner:
        runner.run(migration.copy(config, Heard()))
        made = {"monolith": monolith, "service": service, "config": config, "runner": runner}
        run_state_machine_as_test(
            type("Machine", (Migration,), made),
            settings=settings(
                max_examples=12,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
