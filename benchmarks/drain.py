"""A backlog: many changes made while nobody syncs, then the time until the service has them all.

The changes are small transactions, as an application's are: an order inserted and updated twice,
another one updated, one deleted, so five changes of three keys each. Ours is the whole command,
start of Python included. Native logical replication has a subscription that was made before the
changes and is enabled when the clock starts; it is done when its last transaction can be seen (its
slot is confirmed up to seconds later, which is not held against it). Both begin with the same rows
on either side, all indexes in place, and statistics.
"""

from __future__ import annotations

import time
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from benchmarks.ground import SOURCE, USERS, Ground, clone, execute, fetch
from benchmarks.measure import Contestant, SeriesByName, WrongResult, tell
from benchmarks.programs import TIMEOUT_SECONDS, Usage
from benchmarks.results import Target, compare

OURS: Final = "ordermigrate sync"
NATIVE: Final = "a subscription"
LEAST: Final = 2.5
MOST_CHANGES: Final = 200_000
CHANGES_EACH: Final = 5

_SOURCE: Final = "hub_investments_drained"
_TARGET: Final = "hub_order_service_drained"
_FILLED: Final = "hub_order_service_filled"
_NAME: Final = "benchmark"
_POLL_SECONDS: Final = 0.05
# Two rows that are there for each transaction: in no order, and the same ones in every run.
_MAKE_CHANGES: LiteralString = """
DO $do$
DECLARE
    pair record;
    new_id uuid;
BEGIN
    FOR pair IN
        SELECT ids[1] AS updated, ids[2] AS deleted, place FROM (
            SELECT array_agg(id) AS ids, place FROM (
                SELECT id, (row_number() OVER (ORDER BY uuid_hash_extended(id, 1)) + 1) / 2 AS place
                FROM public.orders
            ) AS numbered WHERE place <= {transactions} GROUP BY place
        ) AS pairs ORDER BY place
    LOOP
        new_id := md5('drain ' || pair.place)::uuid;
        INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity, price)
        VALUES (new_id, 1 + pair.place % {users}, 'PETR4', 'LIMIT', 'BUY', 100, 31.5);
        UPDATE public.orders SET status = 'PROCESSING', processing_worker_id = 'worker-1'
        WHERE id = new_id;
        UPDATE public.orders
        SET status = 'EXECUTED', execution_price = 31.4, executed_at = clock_timestamp()
        WHERE id = new_id;
        UPDATE public.orders SET retry_count = coalesce(retry_count, 0) + 1
        WHERE id = pair.updated;
        DELETE FROM public.orders WHERE id = pair.deleted;
        COMMIT;
    END LOOP;
END
$do$
"""

_LAST: Final = "SELECT 1 FROM public.orders WHERE id = md5(%s)::uuid"


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return who takes part."""
    return [_make_ours(ground), _make_native(ground)]


def count_changes(ground: Ground) -> int:
    """Return how many changes are made; fewer where there are few rows."""
    return min(MOST_CHANGES, ground.rows // 2) // CHANGES_EACH * CHANGES_EACH


def _change(ground: Ground) -> None:
    """Make the changes, and have them on disk, where a slot can read them."""
    statement = sql.SQL(_MAKE_CHANGES).format(
        transactions=sql.Literal(count_changes(ground) // CHANGES_EACH), users=sql.Literal(USERS)
    )
    with psycopg.connect(ground.source(_SOURCE), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(statement)
        connection.execute("CHECKPOINT")


def _make_ours(ground: Ground) -> Contestant:
    def prepare() -> None:
        _unsubscribe(ground)
        clone(ground.monolith, SOURCE, _SOURCE)
        ground.start_migration(_SOURCE, _TARGET)
        # What a first run of sync does once is not what is measured.
        ground.catch_up(_SOURCE, _TARGET)
        _change(ground)
        backlog = ground.count_backlog(_SOURCE)
        if backlog < count_changes(ground) * 3 // CHANGES_EACH:
            raise WrongResult(f"The change log has {backlog} of {count_changes(ground)} changes")

    def run() -> Usage:
        return ground.catch_up(_SOURCE, _TARGET)

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        ground.verify_job(_TARGET, _SOURCE, is_thorough=is_thorough)
        left = ground.count_backlog(_SOURCE)
        if left:
            raise WrongResult(f"Sync says that it has caught up, and the log has {left} rows")

    note = "ordermigrate sync --until-caught-up: the whole command"
    return Contestant(OURS, note, prepare, run, verify)


def _make_native(ground: Ground) -> Contestant:
    _fill(ground)
    name = sql.Identifier(_NAME)

    def prepare() -> None:
        _unsubscribe(ground)
        clone(ground.monolith, SOURCE, _SOURCE)
        ground.forget_migration(_SOURCE)
        clone(ground.service, _FILLED, _TARGET)
        execute(
            ground.source(_SOURCE),
            sql.SQL("CREATE PUBLICATION {} FOR TABLE public.orders").format(name),
        )
        execute(
            ground.target(_TARGET),
            sql.SQL(
                "CREATE SUBSCRIPTION {name} CONNECTION {dsn} PUBLICATION {name} "
                "WITH (copy_data = false, enabled = false, create_slot = true)"
            ).format(name=name, dsn=sql.Literal(ground.source(_SOURCE))),
        )
        _change(ground)

    def run() -> Usage:
        last = count_changes(ground) // CHANGES_EACH
        with psycopg.connect(ground.target(_TARGET), autocommit=True) as target:
            target.execute(sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(name))
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not target.execute(_LAST, [f"drain {last}"]).fetchall():
                if time.monotonic() > deadline:
                    raise WrongResult("The subscription does not catch up")
                time.sleep(_POLL_SECONDS)
        return Usage()

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        try:
            ground.verify_job(_TARGET, _SOURCE, is_thorough=is_thorough)
        finally:
            _unsubscribe(ground)

    note = "a subscription without copy_data, from ENABLE until all of it is visible"
    return Contestant(NATIVE, note, prepare, run, verify)


def _fill(ground: Ground) -> None:
    """Make a target with the rows of the source and indexes as a copy leaves them."""
    tell(f"filling {_FILLED}")
    columns = ", ".join(ground.columns())
    ground.make_target(_FILLED, has_tables=True)
    definitions = ground.drop_indexes(_FILLED)
    ground.run(
        [
            ground.psql(
                ground.source(), f"COPY public.orders ({columns}) TO STDOUT (FORMAT binary)"
            ),
            ground.psql(
                ground.target(_FILLED),
                f"COPY public.orders ({columns}) FROM STDIN (FORMAT binary)",
            ),
        ]
    )
    ground.run([ground.psql(ground.target(_FILLED), "; ".join(definitions))])
    execute(
        ground.target(_FILLED),
        "ALTER TABLE public.orders ADD CONSTRAINT orders_pkey PRIMARY KEY USING INDEX orders_pkey",
        "VACUUM (ANALYZE) public.orders",
    )


def _unsubscribe(ground: Ground) -> None:
    """Remove the subscription, and its slot with it, where there is one."""
    query = "SELECT 1 FROM pg_database JOIN pg_subscription ON subdbid = pg_database.oid"
    if fetch(ground.service.dsn(), query):
        execute(
            ground.target(_TARGET),
            sql.SQL("DROP SUBSCRIPTION IF EXISTS {}").format(sql.Identifier(_NAME)),
        )


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets, and what was measured."""
    return [compare("a backlog drained", series[OURS], series[NATIVE], at_least=LEAST)]
