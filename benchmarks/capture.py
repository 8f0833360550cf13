"""What capture costs the writers: two clients, each transaction an insert and two updates of it.

Every contestant runs the same number of transactions, so the ratio of times is the ratio of
transactions per second. The logical slot has a consumer on the same cores, as it must have. So
have the writers of the last one: `ordermigrate sync` at work beside them, source and target.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from psycopg import sql

from benchmarks import programs
from benchmarks.ground import SOURCE, USERS, Ground, clone, execute, fetch
from benchmarks.measure import Contestant, SeriesByName, WrongResult
from benchmarks.programs import Running, Usage
from benchmarks.results import Target, compare

NONE: Final = "nothing captured"
OURS: Final = "ordermigrate's capture"
SLOT: Final = "a logical slot"
SYNCED: Final = "ordermigrate's capture, and sync"
LEAST: Final = 0.95
CLIENTS: Final = 2
TRANSACTIONS: Final = 8000
CHANGES_EACH: Final = 3
_WARMING: Final = 400

_SOURCE: Final = "hub_investments_written"
_SYNCED_SOURCE: Final = "hub_investments_synced"
_TARGET: Final = "hub_order_service_written"
_SYNCED_TARGET: Final = "hub_order_service_synced"
_SLOT_NAME: Final = "benchmark"
_SCRIPT: Final = """
\\set number random(1, 9000000000000000000)
\\set user random(1, @users)
BEGIN;
INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity, price)
VALUES (md5(:number::text)::uuid, :user, 'PETR4', 'LIMIT', 'BUY', 100, 31.5);
UPDATE public.orders SET status = 'PROCESSING', processing_worker_id = 'worker-1'
WHERE id = md5(:number::text)::uuid;
UPDATE public.orders SET status = 'EXECUTED', execution_price = 31.4, executed_at = now()
WHERE id = md5(:number::text)::uuid;
COMMIT;
"""


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return who takes part."""
    for copy in (_SOURCE, _SYNCED_SOURCE):
        clone(ground.monolith, SOURCE, copy)
        ground.forget_migration(copy)
    ground.start_migration(_SYNCED_SOURCE, _SYNCED_TARGET)
    return [
        _make_writers(ground, NONE, "pgbench, 2 clients, no trigger of ours", _clean),
        _make_writers(
            ground, OURS, "the triggers that ordermigrate prepare installs", _install, _verify_logs
        ),
        _make_with_slot(ground),
        _make_with_sync(ground),
    ]


def _make_writers(
    ground: Ground,
    name: str,
    note: str,
    install: Callable[[Ground], None],
    check: Callable[[Ground], None] | None = None,
) -> Contestant:
    def prepare() -> None:
        install(ground)
        _write(ground, _SOURCE, _WARMING)

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        if check:
            check(ground)

    return Contestant(name, note, prepare, lambda: _write(ground, _SOURCE, TRANSACTIONS), verify)


def _write(ground: Ground, source: str, transactions: int) -> Usage:
    """Let the clients run their transactions."""
    script = ground.folder / "capture.sql"
    script.write_text(_SCRIPT.replace("@users", str(USERS)))
    done = ground.run(
        [
            [
                *(ground.program("pgbench"), "-n", "-f", str(script)),
                *("-c", str(CLIENTS), "-j", str(CLIENTS), "-t", str(transactions // CLIENTS)),
                ground.source(source),
            ]
        ]
    )[0]
    if not re.search(rf"actually processed: {transactions}/{transactions}\b", done.output):
        raise WrongResult(f"pgbench did not run {transactions} transactions: {done.output}")
    return done.usage


def _clean(ground: Ground) -> None:
    ground.forget_migration(_SOURCE)


def _install(ground: Ground) -> None:
    """Install capture as operators do, on a service that is new."""
    _clean(ground)
    ground.make_target(_TARGET)
    ground.ordermigrate("prepare", source=_SOURCE, target=_TARGET)
    ground.change_logs(_SOURCE)  # or nothing would be measured


def _verify_logs(ground: Ground) -> None:
    """Raise unless every change is in the log; no key is logged by less than one row a change."""
    logged = ground.count_backlog(_SOURCE)
    wanted = CHANGES_EACH * (TRANSACTIONS + _WARMING)
    if logged < wanted:
        raise WrongResult(f"The change log has {logged} rows of {wanted} changes")


def _make_with_slot(ground: Ground) -> Contestant:
    """Return the writers beside a slot of pgoutput, what native replication reads, and a reader."""
    consumers = ExitStack()
    consumer: list[Running] = []
    command = [
        *(ground.program("pg_recvlogical"), "-d", ground.source(_SOURCE), "-S", _SLOT_NAME),
        *("--start", "--no-loop", "-f", "/dev/null", "-o", "proto_version=1"),
        *("-o", f"publication_names={_SLOT_NAME}"),
    ]

    def clean() -> None:
        execute(
            ground.source(_SOURCE),
            sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(_SLOT_NAME)),
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE database = current_database()",
        )

    def prepare() -> None:
        _clean(ground)
        execute(
            ground.source(_SOURCE),
            sql.SQL("CREATE PUBLICATION {} FOR TABLE public.orders").format(
                sql.Identifier(_SLOT_NAME)
            ),
            sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput')").format(
                sql.Literal(_SLOT_NAME)
            ),
        )
        consumer[:] = [
            consumers.enter_context(
                programs.running(
                    command, environment=ground.peer_environment(), folder=ground.folder
                )
            )
        ]
        _write(ground, _SOURCE, _WARMING)

    def run() -> Usage:
        return _write(ground, _SOURCE, TRANSACTIONS) + consumer[0].stop()

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        consumers.close()
        read = fetch(
            ground.source(_SOURCE),
            "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots "
            "WHERE database = current_database() AND NOT active",
        )
        clean()
        if not read:
            raise WrongResult("The slot was not there, or pg_recvlogical did not let go of it")

    note = "pg_recvlogical reads it (pgoutput) to /dev/null"
    return Contestant(SLOT, note, prepare, run, verify)


def _make_with_sync(ground: Ground) -> Contestant:
    """Return the writers beside sync, which then has to catch up and be right."""
    syncs = ExitStack()
    sync: list[Running] = []

    def prepare() -> None:
        sync[:] = [syncs.enter_context(ground.syncing(_SYNCED_SOURCE, _SYNCED_TARGET))]
        _write(ground, _SYNCED_SOURCE, _WARMING)

    def run() -> Usage:
        return _write(ground, _SYNCED_SOURCE, TRANSACTIONS) + sync[0].stop()

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        syncs.close()
        ground.catch_up(_SYNCED_SOURCE, _SYNCED_TARGET)
        ground.verify_rows(_SYNCED_TARGET, _SYNCED_SOURCE, is_thorough=is_thorough)

    note = "the same triggers, and ordermigrate sync at work; its stop is within the time"
    return Contestant(SYNCED, note, prepare, run, verify)


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets, and what was measured."""
    return [compare("the writers' time", series[OURS], series[NONE], at_least=LEAST)]


def note(series: SeriesByName) -> list[str]:
    """Return the transactions per second, and how they compare with those of no capture."""
    return [
        f"{name}: {TRANSACTIONS / each.seconds:,.0f} transactions per second, "
        f"{statistics.median(series[NONE].ratios(each)):.2f} of those with {NONE}"
        for name, each in series.items()
    ]
