"""Validate names every difference by key, column and both values, whatever the algorithm."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ordermigrate.digest import Algorithm
from tests.fix_faults import FaultProxy
from tests.fix_orders import (
    ORDERS_TABLE,
    Hub,
    HubTemplates,
    WriteToml,
    cli_environment,
)
from tests.fix_pairs import MakePair, MakeRole, Pair, RunHere, assert_refused
from tests.fix_postgres import MakeDatabase, TestServers, execute

ORDERS, USERS = 600, 20
ALGORITHMS = [each.value for each in Algorithm]
CONFIGURATION = """
[[tables]]
name = "public.orders"
status = "status"
user = "user_id"
created = "created_at"
updated = "updated_at"
"""


@pytest.fixture(scope="module")
def copied(
    hub_templates: HubTemplates,
    postgres_servers: TestServers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str]]:
    """The names of both databases after a copy, to be cloned."""
    names = []
    for server, side, template in (
        (postgres_servers.monolith, "monolith", hub_templates.name("monolith", USERS, ORDERS)),
        (postgres_servers.service, "service", hub_templates.name("service", 0, 0)),
    ):
        names.append((server, server.create_database(f"copied_{side}", template=template)))
    folder: Path = tmp_path_factory.mktemp("copied")
    (folder / "ordermigrate.toml").write_text(CONFIGURATION)
    subprocess.run(
        [sys.executable, "-m", "ordermigrate", "copy"],
        check=True,
        cwd=folder,
        env=cli_environment(names[0][0].dsn(names[0][1]), names[1][0].dsn(names[1][1]), None),
        capture_output=True,
    )
    yield names[0][1], names[1][1]
    for server, name in names:
        server.drop_database(name)


@pytest.fixture
def pair(
    copied: tuple[str, str],
    make_database: MakeDatabase,
    run_here: RunHere,
    ordermigrate_toml: WriteToml,
) -> Pair:
    """A hub after its copy, for this test alone."""
    return Pair(
        make_database("monolith", template=copied[0]),
        make_database("service", template=copied[1]),
        run_here,
        ordermigrate_toml,
        [ORDERS_TABLE],
    )


@pytest.fixture
def released(pair: Pair) -> Pair:
    """A hub whose migration was cancelled: both sides are compared as they are."""
    assert pair.run("cancel").exit_code == 0
    return pair


def read_row(dsn: str, key: str) -> dict[str, str | None] | None:
    """Return a row's values as text, by an eye that is not the product's."""
    with psycopg.connect(dsn, options="-c timezone=UTC -c datestyle=ISO") as connection:
        cursor = connection.execute("SELECT * FROM public.orders LIMIT 0")
        names = [column.name for column in cursor.description or ()]
        texts = ", ".join(f"{name}::text" for name in names)
        found = connection.execute(
            f"SELECT {texts} FROM public.orders WHERE id = %s LIMIT 1", [key]
        ).fetchone()
    return dict(zip(names, found, strict=True)) if found else None


def validate(pair: Pair, *args: str, exit_code: int = 4) -> dict[str, Any]:
    done = pair.run("validate", "--json", *args)
    assert done.exit_code == exit_code, done.stderr
    document = done.json
    assert document["outcome"] == ("different" if exit_code else "equal")
    assert document["exit_code"] == exit_code
    (table,) = document["tables"]
    return dict(table)


def pick(pair: Pair, condition: str, count: int = 1) -> list[str]:
    """Return the keys of some orders."""
    found = pair.on_monolith(
        f"SELECT id::text FROM public.orders WHERE {condition} ORDER BY id LIMIT {count}"
    )
    assert len(found) == count
    return [key for (key,) in found]


BOTH_TEXTS = "processing_worker_id <> '' AND external_order_id <> ''"


@pytest.mark.parametrize(
    ("condition", "change", "columns"),
    [
        pytest.param(
            "true", "quantity = quantity + 0.00000001", ["quantity"], id="the eighth decimal"
        ),
        pytest.param(
            "failure_reason IS NULL", "failure_reason = ''", ["failure_reason"], id="'' for NULL"
        ),
        pytest.param(
            "failure_reason = ''", "failure_reason = NULL", ["failure_reason"], id="NULL for ''"
        ),
        pytest.param(
            "failure_reason IS NULL",
            "failure_reason = 'NULL'",
            ["failure_reason"],
            id="the word NULL for NULL",
        ),
        pytest.param(
            BOTH_TEXTS,
            "processing_worker_id = left(processing_worker_id, -1), external_order_id = "
            "right(processing_worker_id, 1) || external_order_id",
            ["processing_worker_id", "external_order_id"],
            id="a letter that went over to the next column",
        ),
        pytest.param(
            BOTH_TEXTS,
            "processing_worker_id = processing_worker_id || external_order_id, "
            "external_order_id = ''",
            ["processing_worker_id", "external_order_id"],
            id="a value that went over to the column before",
        ),
        pytest.param(
            BOTH_TEXTS,
            "processing_worker_id = external_order_id, external_order_id = processing_worker_id",
            ["processing_worker_id", "external_order_id"],
            id="two columns swapped",
        ),
        pytest.param("true", "symbol = symbol || ' '", ["symbol"], id="a trailing space"),
        pytest.param("true", "symbol = lower(symbol)", ["symbol"], id="small letters"),
        pytest.param(
            "true",
            "created_at = created_at + interval '1 microsecond'",
            ["created_at"],
            id="a microsecond",
        ),
        pytest.param("true", "updated_at = NULL", ["updated_at"], id="a time that is gone"),
        pytest.param(
            "status = 'EXECUTED'",
            "status = 'FAILED', retry_count = coalesce(retry_count, 0) + 1, price = 1",
            ["status", "retry_count", "price"],
            id="three columns",
        ),
    ],
)
def test_a_changed_value_is_named_by_key_column_and_both_values(
    pair: Pair, condition: str, change: str, columns: list[str]
) -> None:
    (key,) = pick(pair, condition)
    pair.plant(f"UPDATE public.orders SET {change} WHERE id = '{key}'")
    before, after = read_row(pair.monolith, key), read_row(pair.service, key)
    assert before is not None
    assert after is not None
    changed = {name: {"source": before[name], "target": after[name]} for name in columns}
    assert all(values["source"] != values["target"] for values in changed.values())
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm)
        assert table["differences"] == [{"key": {"id": key}, "kind": "changed", "columns": changed}]
        assert table["differences_total"] == 1
    shown = pair.run("validate", "--checksums", env={"COLUMNS": "200"})
    assert shown.exit_code == 4
    assert "DIFFERENT" in shown.stdout
    for expected in (key, *columns, *filter(None, (after[name] for name in columns))):
        assert expected in shown.stdout


def test_two_swapped_rows_are_two_changed_ones(released: Pair) -> None:
    one, other = pick(released, "status = 'EXECUTED'", 2)
    released.plant(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_pkey;"
        "UPDATE public.orders SET id = CASE id::text "
        f"WHEN '{one}' THEN '{other}'::uuid ELSE '{one}' END WHERE id IN ('{one}', '{other}')"
    )
    for algorithm in ALGORITHMS:
        table = validate(released, "--algorithm", algorithm)
        found = table["differences"]
        assert {each["key"]["id"] for each in found} == {one, other}
        assert {each["kind"] for each in found} == {"changed"}
        for each in found:
            before = read_row(released.monolith, each["key"]["id"])
            after = read_row(released.service, each["key"]["id"])
            assert before is not None
            assert after is not None
            assert each["columns"] == {
                name: {"source": before[name], "target": after[name]}
                for name in before
                if before[name] != after[name]
            }
        checks = {check["name"]: check["outcome"] for check in table["checks"]}
        assert checks["row count"] == "equal"  # only the checksums can see this


def test_a_missing_row_is_named_with_the_values_that_are_missing(pair: Pair) -> None:
    (key,) = pick(pair, "failure_reason IS NULL")
    pair.plant(f"DELETE FROM public.orders WHERE id = '{key}'")
    row = read_row(pair.monolith, key)
    assert row is not None
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm)
        (difference,) = table["differences"]
        assert difference["key"] == {"id": key}
        assert difference["kind"] == "missing"
        assert {name: values["source"] for name, values in difference["columns"].items()} == row
        assert {values["target"] for values in difference["columns"].values()} == {None}
        assert (table["source_rows"], table["target_rows"]) == (ORDERS, ORDERS - 1)


def test_an_extra_row_is_named_with_the_values_that_are_too_many(pair: Pair) -> None:
    key = "00000000-0000-4000-8000-000000000001"
    pair.plant(
        "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity) "
        f"VALUES ('{key}', 1, 'X', 'MARKET', 'BUY', 1)"
    )
    row = read_row(pair.service, key)
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm)
        (difference,) = table["differences"]
        assert (difference["key"], difference["kind"]) == ({"id": key}, "extra")
        assert {name: values["target"] for name, values in difference["columns"].items()} == row


def test_one_row_missing_and_another_too_many_do_not_make_it_right(pair: Pair) -> None:
    gone, new = pick(pair, "true")[0], "00000000-0000-4000-8000-000000000001"
    pair.plant(f"UPDATE public.orders SET id = '{new}' WHERE id = '{gone}'")
    assert validate(pair, exit_code=0)  # the counts alone cannot see it
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm)
        found = {each["key"]["id"]: each["kind"] for each in table["differences"]}
        assert found == {gone: "missing", new: "extra"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_duplicated_row_is_seen_where_the_service_has_no_key(released: Pair, times: int) -> None:
    """Twice the same again would cancel out, were digests put together by XOR."""
    (key,) = pick(released, "true")
    released.plant(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_pkey;"
        f"INSERT INTO public.orders SELECT o.* FROM public.orders o, generate_series(1, {times}) "
        f"WHERE o.id = '{key}'"
    )
    for algorithm in ALGORITHMS:
        table = validate(released, "--algorithm", algorithm)
        found = [(each["key"]["id"], each["kind"]) for each in table["differences"]]
        assert found == [(key, "extra")] * times


def test_a_duplicate_in_place_of_another_row_is_seen(released: Pair) -> None:
    kept, lost = pick(released, "true", 2)
    released.plant(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_pkey;"
        f"DELETE FROM public.orders WHERE id = '{lost}';"
        f"INSERT INTO public.orders SELECT * FROM public.orders WHERE id = '{kept}'"
    )
    for algorithm in ALGORITHMS:
        table = validate(released, "--algorithm", algorithm)
        found = {each["key"]["id"]: each["kind"] for each in table["differences"]}
        assert found == {kept: "extra", lost: "missing"}


def test_one_and_one_point_nought_are_two_values_of_a_plain_numeric(make_pair: MakePair) -> None:
    table = "CREATE TABLE public.thing (id integer PRIMARY KEY, n numeric, f float8, j jsonb)"
    pair = make_pair(
        f"{table}; INSERT INTO public.thing VALUES (1, 1.0, '0', '1.0'), (2, 7, 7, '7')",
        f"{table}; INSERT INTO public.thing VALUES (1, 1.00, '-0', '1.00'), (2, 7, 7, '7')",
    )
    for algorithm in ALGORITHMS:
        table_found = validate(pair, "--algorithm", algorithm)
        assert table_found["differences"] == [
            {
                "key": {"id": "1"},
                "kind": "changed",
                "columns": {
                    "n": {"source": "1.0", "target": "1.00"},
                    "f": {"source": "0", "target": "-0"},
                    "j": {"source": "1.0", "target": "1.00"},
                },
            }
        ]


# ------------------------------------------------------------------------------- many differences


def test_all_are_counted_and_only_so_many_shown(pair: Pair) -> None:
    keys = pick(pair, "true", 50)
    pair.plant(
        f"UPDATE public.orders SET retry_count = 99 WHERE id = ANY ('{{{','.join(keys)}}}'::uuid[])"
    )
    for count in (0, 1, 7, 50, 1000):
        table = validate(pair, "--checksums", "--max-differences", str(count))
        found = table["differences"]
        assert len(found) == min(count, 50)
        assert table["differences_total"] == 50
        assert {each["key"]["id"] for each in found} <= set(keys)
    shown = pair.run("validate", "--checksums", "--max-differences", "7")
    assert "50 rows differ, 7 shown" in shown.stdout
    assert "50 rows differ" in shown.stdout
    assert len(validate(pair, "--checksums")["differences"]) == 20


def test_what_the_monolith_has_written_is_brought_before_both_are_compared(pair: Pair) -> None:
    pair.on_monolith("UPDATE public.orders SET retry_count = 99 WHERE user_id % 2 = 0")
    pair.on_monolith("DELETE FROM public.orders WHERE user_id = 7")
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm, exit_code=0)
        assert table["differences"] == []
    assert pair.compare(ORDERS_TABLE)
    pair.on_monolith("TRUNCATE public.orders")
    assert validate(pair, "--checksums", exit_code=0)["source_rows"] == 0


def test_a_row_that_was_planted_and_then_written_to_is_as_the_monolith_has_it(pair: Pair) -> None:
    keys = pick(pair, "true", 2)
    pair.plant(f"UPDATE public.orders SET retry_count = 77 WHERE id IN ('{keys[0]}', '{keys[1]}')")
    pair.on_monolith(f"UPDATE public.orders SET symbol = 'ELSE' WHERE id = '{keys[0]}'")
    table = validate(pair, "--checksums")
    assert [each["key"]["id"] for each in table["differences"]] == [keys[1]]
    assert pair.run("validate", "--repair").exit_code == 0
    assert pair.compare(ORDERS_TABLE)


@pytest.mark.parametrize(
    "change", ["UPDATE public.orders SET retry_count = -1", "TRUNCATE public.orders"]
)
def test_every_row_may_differ(pair: Pair, change: str) -> None:
    pair.plant(change)
    table = validate(pair, "--checksums", "--max-differences", "5")
    assert table["differences_total"] == ORDERS
    assert len(table["differences"]) == 5


def test_a_monolith_that_is_empty_makes_every_row_an_extra_one(released: Pair) -> None:
    released.on_monolith("TRUNCATE public.orders")
    table = validate(released, "--checksums", "--max-differences", "1000")
    assert table["differences_total"] == ORDERS
    assert {each["kind"] for each in table["differences"]} == {"extra"}


# ------------------------------------------------------------------------ counts and distributions


def test_the_quick_checks_tell_what_has_moved(pair: Pair) -> None:
    newest = pair.on_monolith(
        "SELECT id::text, user_id FROM public.orders ORDER BY created_at DESC LIMIT 1"
    )
    ((key, user),) = newest
    other = 1 if user != 1 else 2
    pair.plant(
        f"UPDATE public.orders SET user_id = {other}, status = 'FAILED' WHERE id = '{key}';"
        "DELETE FROM public.orders WHERE id = (SELECT min(id::text)::uuid FROM public.orders)"
    )
    table = validate(pair)
    checks = {each["name"]: each for each in table["checks"]}
    assert "row checksums" not in checks
    assert {name: check["outcome"] for name, check in checks.items()} == {
        "row count": "different",
        "status distribution": "different",
        "orders per user": "different",
        "latest orders": "different",
        "orphans": "equal",
    }
    counted = {each["status"]: each for each in checks["status distribution"]["details"]}
    for side, run in (("source", pair.on_monolith), ("target", pair.on_service)):
        rows = run("SELECT status, count(*) FROM public.orders GROUP BY 1")
        assert {status: each[side] for status, each in counted.items() if each[side]} == dict(rows)
    users = {each["user"]: each for each in checks["orders per user"]["details"]}
    assert users[str(user)]["target"] - users[str(user)]["source"] in {-1, -2}
    latest = checks["latest orders"]["details"]
    assert len(latest) == 10
    assert latest[0]["source"]["id"] == key
    assert latest[0]["target"]["status"] == "FAILED"


def test_the_largest_differences_between_users_come_first(pair: Pair) -> None:
    pair.plant("DELETE FROM public.orders WHERE user_id <= 15 AND random() < 2")
    checks = {each["name"]: each for each in validate(pair)["checks"]}
    check = checks["orders per user"]
    sizes = [each["source"] - each["target"] for each in check["details"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 10
    assert check["summary"].startswith("15 of ")


def test_the_verdict_is_kept_and_void_once_the_rows_may_have_changed(pair: Pair) -> None:
    assert pair.run("validate", "--checksums").exit_code == 0
    last = pair.run("status", "--json").json["last_validation"]
    assert (last["verdict"], last["algorithm"], last["is_void"]) == ("equal", "md5", False)
    pair.plant("UPDATE public.orders SET retry_count = 99")
    assert pair.run("validate", "--algorithm", "sha256").exit_code == 4
    last = pair.run("status", "--json").json["last_validation"]
    assert (last["verdict"], last["algorithm"]) == ("different", "sha256")
    assert pair.run("copy", "--restart").exit_code == 0
    last = pair.run("status", "--json").json["last_validation"]
    assert (last["verdict"], last["is_void"]) == ("different", True)
    assert "void" in pair.run("status").stdout


# ------------------------------------------------------------------------------------------ orphans


def orphans(pair: Pair) -> dict[str, Any]:
    table = validate(pair, "--checksums", exit_code=0)
    (found,) = [each for each in table["checks"] if each["name"] == "orphans"]
    return dict(found)


def test_users_that_the_monolith_no_longer_has_deserve_attention(pair: Pair) -> None:
    ((orders, users),) = pair.on_monolith(
        "SELECT count(*), count(DISTINCT user_id) FROM public.orders WHERE user_id IN (1, 2, 3)"
    )
    assert orphans(pair)["outcome"] == "equal"
    pair.on_monolith(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_user_id_fkey;"
        "DELETE FROM public.users WHERE id IN (1, 2, 3);"
        "ALTER TABLE public.orders ADD CONSTRAINT orders_user_id_fkey FOREIGN KEY (user_id) "
        "REFERENCES public.users (id) NOT VALID"
    )
    found = orphans(pair)
    assert found["outcome"] == "attention"
    assert f"{orders} rows of {users} users" in str(found["summary"])
    assert found["details"] == [{"user": "1"}, {"user": "2"}, {"user": "3"}]
    shown = pair.run("validate", "--checksums")
    assert shown.exit_code == 0
    assert "attention" in shown.stdout


def test_without_a_foreign_key_orphans_are_skipped_and_it_says_why(pair: Pair) -> None:
    pair.on_monolith("ALTER TABLE public.orders DROP CONSTRAINT orders_user_id_fkey")
    found = orphans(pair)
    assert found["outcome"] == "skipped"
    assert "no foreign key of the monolith tells where user_id points" in str(found["summary"])


def test_users_that_we_may_not_read_skip_the_orphans_and_nothing_else(
    make_role: MakeRole, released: Pair
) -> None:
    role = make_role()
    released.on_monolith(f"GRANT SELECT ON public.orders TO {role}")
    found = orphans(released.as_role(role, service=False))
    assert found["outcome"] == "skipped"
    assert "may not read public.users" in str(found["summary"])
    # The role owns databases' objects on the shared servers: take the grants back before it goes.
    released.on_monolith(f"DROP OWNED BY {role}")


# ---------------------------------------------------------------------------------- unreadable side


def test_a_side_that_cannot_be_read_is_an_error_and_never_a_difference(
    make_role: MakeRole, pair: Pair
) -> None:
    role = make_role()
    for side in ("monolith", "service"):
        one = pair.as_role(role, monolith=side == "monolith", service=side == "service")
        for args in (("validate",), ("validate", "--checksums", "--json")):
            done = one.run(*args)
            assert_refused(done, 3, [side])
            assert "different" not in done.stdout


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_side_that_is_lost_in_the_middle_is_an_error_and_never_a_difference(
    pair: Pair, make_proxy: Callable[[str], FaultProxy], side: str
) -> None:
    proxy = make_proxy(getattr(pair, side))
    proxy.when_seen(b"OFFSET 0) AS i", proxy.cut)
    cut = pair.but(
        limits={"retry_deadline_seconds": 0},
        **{f"{side}_dsn": proxy.dsn(getattr(pair, side))},
    )
    done = cut.run("validate", "--checksums", "--json")
    assert_refused(done, 5, [side])
    assert done.json["outcome"] == "unavailable"
    assert pair.run("status", "--json").json["last_validation"] is None


def test_a_table_that_is_gone_is_an_error_and_never_a_difference(pair: Pair) -> None:
    pair.on_service("ALTER TABLE public.orders RENAME TO old_orders")
    assert_refused(
        pair.run("validate", "--checksums"), 3, ["public.orders is not on the service any more"]
    )


def test_two_hubs_are_two_databases(copied: tuple[str, str], pair: Pair) -> None:
    """The clones of these tests are what they are taken for: equal, and the test's own."""
    hub = Hub(pair.monolith, pair.service)
    assert conninfo_to_dict(hub.monolith)["dbname"] not in copied
    assert execute(hub.service, "SELECT count(*) FROM public.orders") == [(ORDERS,)]
    for algorithm in ALGORITHMS:
        table = validate(pair, "--algorithm", algorithm, exit_code=0)
        assert table["differences"] == []
        assert table["source_rows"] == table["target_rows"] == ORDERS
    assert pair.compare(ORDERS_TABLE)
