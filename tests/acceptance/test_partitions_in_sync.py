"""Partitions that rows lack while sync goes on: created, or told."""

from __future__ import annotations

import re

from tests.acceptance.fix_running import bring_up, catch_up, succeed
from tests.fix_cut_over import cut_over
from tests.fix_pairs import MakePair, Pair

PLAIN = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, made_at timestamptz NOT NULL);"
    "INSERT INTO public.thing SELECT n, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 day'"
    " FROM generate_series(1, 40) n"
)
BY_MONTH = (
    "CREATE TABLE public.thing (id integer, made_at timestamptz NOT NULL, "
    "PRIMARY KEY (id, made_at)) PARTITION BY RANGE (made_at);"
    "CREATE TABLE public.thing_2024_01 PARTITION OF public.thing"
    " FOR VALUES FROM ('2024-01-01 00:00:00+00') TO ('2024-02-01 00:00:00+00');"
    "CREATE TABLE public.thing_2024_02 PARTITION OF public.thing"
    " FOR VALUES FROM ('2024-02-01 00:00:00+00') TO ('2024-03-01 00:00:00+00')"
)
LATE = (
    "INSERT INTO public.thing VALUES (100, '2024-05-31 23:59:59+00'), (101, '2023-12-31 12:00+00')"
)
PARTS = (
    "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition "
    "AND relkind = 'r' ORDER BY 1"
)


def creating(pair: Pair) -> Pair:
    return pair.but(tables=[{"name": "public.thing", "missing_partition": "create"}])


def test_a_row_that_no_partition_takes_has_one_created_where_that_is_wanted(
    make_pair: MakePair,
) -> None:
    pair = creating(bring_up(make_pair(PLAIN, BY_MONTH)))
    pair.on_monolith(LATE)
    catch_up(pair)
    found = dict(pair.on_service(f"SET TimeZone = 'UTC'; {PARTS}"))
    assert sorted(found) == ["thing_2023_12", "thing_2024_01", "thing_2024_02", "thing_2024_05"]
    assert found["thing_2024_05"] == (
        "FOR VALUES FROM ('2024-05-01 00:00:00+00') TO ('2024-06-01 00:00:00+00')"
    )
    pair.validate()
    status = succeed(pair, "status", "--json").json
    assert status["fences"]["service"] == "on"
    # It is one of the table's parts from then on.
    pair.on_monolith("UPDATE public.thing SET made_at = '2024-05-02' WHERE id = 1")
    catch_up(pair)
    pair.validate()


def test_a_row_that_no_partition_takes_stops_sync_and_the_statement_is_told(
    make_pair: MakePair,
) -> None:
    pair = bring_up(make_pair(PLAIN, BY_MONTH))
    pair.on_monolith("INSERT INTO public.thing VALUES (100, '2024-05-31 23:59:59+00')")
    done = pair.refuse(
        "sync",
        "--until-caught-up",
        exit_code=3,
        says=["public.thing", "made_at = 2024-05-31 23:59:59+00", "missing_partition"],
    )
    told = re.search(r"Run on the service: (CREATE TABLE .*?\));", done.stderr)
    assert told is not None
    pair.on_service(told[1])
    catch_up(pair)
    pair.validate()


def test_the_way_back_creates_partitions_too(make_pair: MakePair) -> None:
    pair = creating(bring_up(make_pair(BY_MONTH, PLAIN.partition(";")[0])))
    cut_over(pair)
    pair.on_service(LATE)
    catch_up(pair)
    assert [name for name, _ in pair.on_monolith(PARTS)] == [
        "thing_2023_12",
        "thing_2024_01",
        "thing_2024_02",
        "thing_2024_05",
    ]
    assert pair.on_monolith("SELECT count(*) FROM public.thing") == [(2,)]
    pair.validate()
