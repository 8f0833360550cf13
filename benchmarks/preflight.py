"""Preflight of a monolith of 100 tables and 10,000 partitions, all of them one family.

Each table has a primary key, an index, a trigger and a view, and each partition its own of the
indexes. Ours is the whole command, start of Python included, every check on both sides. The limit
is one statement that has the server look once at what none of this can do without: sizes, columns,
definitions of indexes and constraints, partition bounds, triggers, views.
"""

from __future__ import annotations

import json
from typing import Final, LiteralString

from psycopg import sql

from benchmarks import programs
from benchmarks.ground import Ground, execute
from benchmarks.measure import Contestant, SeriesByName, WrongResult
from benchmarks.programs import Usage
from benchmarks.results import Target, compare

OURS: Final = "ordermigrate preflight"
LOOK: Final = "one pass over the catalog"
TABLES: Final = 100
PARTITIONS: Final = 100
MOST_SECONDS: Final = 10.0
MOST_PASSES: Final = 10.0
_SOURCE: Final = "hub_partitioned"
_TARGET: Final = "hub_partitioned_service"
_MAKE: LiteralString = """
DO $do$
DECLARE
    name text := {name};
BEGIN
    EXECUTE format('CREATE TABLE public.%I (id integer PRIMARY KEY, word text, made timestamptz) '
        'PARTITION BY RANGE (id)', name);
    EXECUTE format('CREATE INDEX ON public.%I (word)', name);
    FOR part IN 1..{partitions} LOOP
        EXECUTE format('CREATE TABLE public.%I PARTITION OF public.%I FOR VALUES FROM (%s) TO (%s)',
            name || '_' || part, name, part, part + 1);
    END LOOP;
    EXECUTE format('CREATE FUNCTION public.%I() RETURNS trigger LANGUAGE plpgsql AS '
        '''BEGIN UPDATE public.%I SET made = now() WHERE id = NEW.id; RETURN NULL; END''',
        name || '_made', name);
    EXECUTE format('CREATE TRIGGER made AFTER INSERT ON public.%I '
        'FOR EACH ROW EXECUTE FUNCTION public.%I()', name, name || '_made');
    EXECUTE format('CREATE VIEW public.%I AS SELECT id FROM public.%I', name || '_ids', name);
END
$do$
"""
_LOOK: Final = """
SELECT
    (SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'),
    (SELECT sum(length(format_type(atttypid, atttypmod))) FROM pg_attribute WHERE attnum > 0),
    (SELECT sum(length(pg_get_indexdef(indexrelid))) FROM pg_index),
    (SELECT sum(length(pg_get_constraintdef(oid))) FROM pg_constraint),
    (SELECT sum(length(pg_get_expr(relpartbound, oid))) FROM pg_class WHERE relispartition),
    (SELECT sum(length(pg_get_triggerdef(oid))) FROM pg_trigger),
    (SELECT sum(length(pg_get_viewdef(oid))) FROM pg_class WHERE relkind = 'v')
"""


def make_contestants(ground: Ground) -> list[Contestant]:
    """Make the two databases, and return who takes part."""
    _make_databases(ground)
    config = ground.folder / "partitioned.toml"
    config.write_text("".join(f'[[tables]]\nname = "public.t{i}"\n' for i in range(TABLES)))
    output: list[str] = []

    def run() -> Usage:
        ended = programs.run(
            [
                [
                    programs.python(),
                    "-m",
                    "ordermigrate",
                    "preflight",
                    "--json",
                    "--config",
                    str(config),
                ]
            ],
            environment=ground.variables(_SOURCE, _TARGET),
            folder=ground.folder,
        )[0]
        output[:] = [ended.output]
        return ended.usage

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        document = json.loads(output[0])
        views = sum(each["key"] == "views" for each in document["findings"])
        if document["unchecked"] or views != TABLES:
            raise WrongResult(f"{views} views were found, and {document['unchecked']} not checked")

    def look() -> Usage:
        return ground.run([ground.psql(ground.source(_SOURCE), _LOOK)])[0].usage

    return [
        Contestant(OURS, "the whole command, --json", _nothing, run, verify),
        Contestant(LOOK, "by psql, on the monolith alone", _nothing, look, lambda _: None),
    ]


def _make_databases(ground: Ground) -> None:
    source = sql.Identifier(_SOURCE)
    execute(
        ground.monolith.dsn(),
        sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(source),
        sql.SQL("CREATE DATABASE {}").format(source),
    )
    ground.make_target(_TARGET)
    names = [f"t{number}" for number in range(TABLES)]
    execute(
        ground.source(_SOURCE),
        *(
            sql.SQL(_MAKE).format(name=sql.Literal(name), partitions=sql.Literal(PARTITIONS))
            for name in names
        ),
        "VACUUM (ANALYZE) pg_catalog.pg_class",
        "VACUUM (ANALYZE) pg_catalog.pg_attribute",
    )
    execute(
        ground.target(_TARGET),
        *(
            sql.SQL(
                "CREATE TABLE public.{} (id integer PRIMARY KEY, word text, made timestamptz)"
            ).format(sql.Identifier(name))
            for name in names
        ),
    )


def _nothing() -> None:
    """Leave the databases as they are."""


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets, and what was measured."""
    seconds = [sample.seconds for sample in series[OURS].samples]
    return [
        Target(
            f"{TABLES} tables, {TABLES * PARTITIONS:,} partitions",
            series[OURS].seconds,
            MOST_SECONDS,
            spread=(min(seconds), max(seconds)),
            unit="s",
        ),
        compare("the same", series[OURS], series[LOOK], at_most=MOST_PASSES),
    ]
