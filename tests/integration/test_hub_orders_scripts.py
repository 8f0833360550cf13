"""The hub's scripts for people: roles, monitoring, maintenance and backup do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from tests.faults.fix_copying import await_true
from tests.fix_orders import FAMILY, add_orders, identical
from tests.fix_pairs import MakeRole
from tests.fix_postgres import MakeDatabase, execute

VARIANTS = ("service.sql", "service_partitioned.sql")
ROLES = ("hub_order_service_user", "hub_order_service_readonly", "hub_order_service_admin")
BACKUP = FAMILY / "backup.sh"


def read(name: str) -> str:
    return (FAMILY / name).read_text("utf-8")


@pytest.fixture(params=VARIANTS)
def service(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    """An empty service, plain and partitioned."""
    return make_database("service", script=read(request.param))


# ---------------------------------------------------------------------------------------- roles


def test_the_roles_have_just_their_grants(make_role: MakeRole, make_database: MakeDatabase) -> None:
    user, readonly, admin = (make_role(name.rpartition("_")[2]) for name in ROLES)
    dsn = make_database("service", script=read("service_partitioned.sql"))
    script = read("roles.sql")
    for name, mine in zip(ROLES, (user, readonly, admin), strict=True):
        assert name in script
        script = script.replace(name, mine)
    execute(dsn, f"DROP ROLE {readonly}")  # one of them has to be made
    for _ in range(2):
        execute(dsn, script)
    granted = execute(
        dsn,
        "SELECT grantee, privilege_type FROM information_schema.role_table_grants "  # noqa: S608
        f"WHERE grantee IN ('{user}', '{readonly}', '{admin}') AND table_name LIKE 'orders%'",
    )
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    assert sorted(granted) == sorted([*((user, each) for each in rights), (readonly, "SELECT")])
    can_create = "SELECT has_database_privilege('{}', current_database(), 'CREATE')"
    assert [execute(dsn, can_create.format(role)) for role in (user, readonly, admin)] == [
        [(False,)],
        [(False,)],
        [(True,)],
    ]


# ----------------------------------------------------------------------------------- monitoring


def watch(dsn: str, only: str = "") -> Mapping[str, list[dict[str, Any]]]:
    """Return the answers of monitoring.sql by name, or one of them."""
    parts = re.split(r"^-- name: (\w+)$", read("monitoring.sql"), flags=re.MULTILINE)[1:]
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        return {
            name: connection.execute(body.encode()).fetchall()
            for name, body in zip(parts[::2], parts[1::2], strict=True)
            if name.startswith(only)
        }


def test_every_number_to_watch_can_be_had(service: str) -> None:
    found = watch(service)
    (size,) = found["table_size"]
    assert (size["rows_estimate"], size["is_to_be_partitioned"]) == (0, False)
    (used,) = found["connections"]
    assert 1 <= used["connections"] <= used["max_connections"]
    assert found["throughput"][0]["commits"] >= 0
    assert len(found["index_usage"]) == 7 * max(1, size["partitions"])
    assert len(found["dead_rows"]) == size["partitions"] + 1
    assert len(found["default_partition"]) == min(1, size["partitions"])
    rows = [row for name in found for row in found[name] if name not in {"connections", "replicas"}]
    assert {row.get("alert", "ok") for row in rows} == {"ok"}


def test_it_is_said_when_the_table_is_to_be_partitioned(service: str) -> None:
    # The statistics are what is looked at, and a superuser may say what they are.
    execute(
        service,
        "UPDATE pg_class SET reltuples = 1000001 WHERE oid = (SELECT max(c.oid) FROM pg_class c "
        "WHERE relname ~ '^orders(_2025_07)?$' AND relkind = 'r')",
    )
    ((size,),) = (watch(service)["table_size"],)
    is_plain = size["partitions"] == 0
    assert size["rows_estimate"] == 1_000_001
    assert (size["is_to_be_partitioned"], size["alert"]) == (
        is_plain,
        "warning" if is_plain else "ok",
    )


def test_a_query_that_takes_long_is_shown(make_database: MakeDatabase) -> None:
    dsn = make_database("service", script=read("service.sql"))
    shown: list[dict[str, Any]] = []

    def has_slow() -> bool:
        shown.extend(watch(dsn, "slow_queries")["slow_queries"])
        return shown != []

    waiting = threading.Thread(target=execute, args=(dsn, "SELECT count(*) FROM public.orders"))
    with psycopg.connect(dsn) as holder:
        holder.execute("LOCK TABLE public.orders")
        waiting.start()
        await_true(has_slow)
    waiting.join(30)
    assert shown[0]["wait_event_type"] == "Lock"
    assert shown[0]["alert"] in {"warning", "critical"}


# ---------------------------------------------------------------------------------- maintenance


def test_maintenance_makes_the_months_to_come_and_statistics(service: str) -> None:
    next_month = (date.today().replace(day=1) + timedelta(days=32)).strftime("orders_%Y_%m")  # noqa: DTZ011
    is_partitioned = execute(service, "SELECT to_regclass('public.orders_default')") != [(None,)]
    if is_partitioned:
        execute(service, f"DROP TABLE public.{next_month}")
    call = ["psql", "-X", "-d", service, "-f", str(FAMILY / "maintenance.sql")]
    said = ""
    for _ in range(2):
        said = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    if is_partitioned:
        parts = "SELECT count(*) FROM pg_partition_tree('public.orders') WHERE relid = to_regclass"
        assert execute(service, f"{parts}('public.{next_month}')") == [(1,)]
        assert "orders_2025_01" in said  # ended more than a year ago
    analyzed = "SELECT last_vacuum IS NOT NULL FROM pg_stat_user_tables WHERE relname = '{}'"
    part = "orders_2025_07" if is_partitioned else "orders"
    assert execute(service, analyzed.format(part)) == [(True,)]


# --------------------------------------------------------------------------------------- backup


def back_up(
    *args: str | Path, exit_code: int = 0, environ: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run the backup script."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "KEEP"))}
    done = subprocess.run(
        [str(BACKUP), *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        env=plain | dict(environ),
    )
    assert done.returncode == exit_code, done.stderr
    return done


def name_of(day: date, hour: int = 2) -> str:
    return f"hub_order_service_{day:%Y%m%d}_{hour:02d}0000.backup"


def kept_of(days: list[date], keep: tuple[int, int, int]) -> set[date]:
    """Return what the retention is to keep: the last of the newest days, weeks and months."""
    found: set[date] = set()
    for count, period in zip(keep, ("%Y %j", "%G %V", "%Y %m"), strict=True):
        last = {day.strftime(period): day for day in sorted(days)}
        found.update(sorted(last.values())[-count:])
    return found


@pytest.mark.parametrize("gap", [1, 3, 17])
def test_30_daily_12_weekly_and_12_monthly_backups_are_kept(tmp_path: Path, gap: int) -> None:
    newest = date(2025, 3, 5)  # over a leap day and a turn of the year
    days = [newest - timedelta(days=gap * number) for number in range(430 // gap)]
    for day in days:
        (tmp_path / name_of(day)).touch()
    wanted = kept_of(days, (30, 12, 12))
    listed = back_up("--list", tmp_path).stdout.split()
    assert len(list(tmp_path.iterdir())) == len(days)  # a list touches nothing
    assert sorted(listed) == sorted(name_of(day) for day in set(days) - wanted)
    back_up("--prune", tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {name_of(day) for day in wanted}
    assert back_up("--prune", tmp_path).stdout == ""


def test_backups_made_day_by_day_leave_the_same_as_all_at_once(tmp_path: Path) -> None:
    """What is pruned today is never what a later day would have kept."""
    start, keep = date(2023, 12, 1), {"KEEP_DAYS": "4", "KEEP_WEEKS": "3", "KEEP_MONTHS": "3"}
    days = [start + timedelta(days=number) for number in range(60)]
    for day in days:
        (tmp_path / name_of(day)).touch()
        back_up("--prune", tmp_path, environ=keep)
    found = {each.name for each in tmp_path.iterdir()}
    assert found == {name_of(day) for day in kept_of(days, (4, 3, 3))}


def test_only_backups_of_this_database_are_looked_at(tmp_path: Path) -> None:
    day = date(2025, 1, 1)
    others = [
        "hub_order_service_old_20200101_020000.backup",
        "hub_order_service_20200101_020000.backup.part",
        "hub_order_service_2020.backup",
        "other_20200101_020000.backup",
    ]
    mine = [name_of(day, 2), name_of(day, 8), name_of(day - timedelta(days=1))]
    for name in [*others, *mine]:
        (tmp_path / name).touch()
    ones = {"KEEP_DAYS": "1", "KEEP_WEEKS": "1", "KEEP_MONTHS": "1"}
    back_up("--prune", tmp_path, environ=ones)
    # 31 December was another month, but one month is to be kept; of a day the last one stays.
    assert {each.name for each in tmp_path.iterdir()} == {*others, name_of(day, 8)}


def test_a_call_that_makes_no_sense_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / name_of(date(2020, 1, 1))).touch()
    for args, environ in (
        ((), {}),
        (("--prune",), {}),
        (("--unknown", tmp_path), {}),
        ((tmp_path / "absent",), {}),
        (("--prune", tmp_path), {"KEEP_DAYS": "0"}),
        (("--prune", tmp_path), {"KEEP_WEEKS": "many"}),
        (("--prune", tmp_path), {"PGDATABASE": "postgresql://localhost/x"}),
    ):
        back_up(*args, exit_code=2, environ=environ)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_backup_can_be_restored_and_a_failed_one_leaves_nothing(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    dsn = make_database("monolith", script=read("monolith.sql"))
    add_orders(dsn, users=3, orders=50)
    parts = conninfo_to_dict(dsn)
    environ = {
        f"PG{key}": str(parts[name])
        for key, name in (
            ("HOST", "host"),
            ("PORT", "port"),
            ("USER", "user"),
            ("PASSWORD", "password"),
            ("DATABASE", "dbname"),
        )
        if name in parts
    }
    assert back_up(tmp_path, environ=environ).stdout.startswith("wrote ")
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(rf"{parts['dbname']}_\d{{8}}_\d{{6}}\.backup", file.name)
    assert file.stat().st_mode & 0o077 == 0
    empty = make_database("monolith")
    subprocess.run(
        ["pg_restore", "--exit-on-error", "--no-owner", f"--dbname={empty}", str(file)], check=True
    )
    assert identical(dsn, empty)
    back_up(tmp_path, exit_code=1, environ=environ | {"PGDATABASE": "om_absent"})
    assert list(tmp_path.iterdir()) == [file]
