"""Checksum validation: of equal tables, and with ten rows that differ.

The mark is one MD5 pass over each whole table, on both servers at once, which could tell only
that something differs: `md5(convert_to(ROW(...)::text, 'UTF8'))` of every row, summed in two
halves. It is written in the cheapest form that we know (one digest a row, kept apart from the
sums by OFFSET 0). Ours is the whole command: counts, status distribution, users, latest orders
and orphans too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from typing import Final, LiteralString

from psycopg import sql

from benchmarks.ground import SOURCE, TARGET, Ground, clone, execute, fetch, total
from benchmarks.measure import Contestant, SeriesByName, WrongResult
from benchmarks.programs import Usage
from benchmarks.results import Target, compare

OURS: Final = "ordermigrate validate, MD5"
OURS_FAST: Final = "ordermigrate validate, record-hash"
OURS_TEN: Final = "ordermigrate validate, MD5, 10 differ"
OURS_FAST_TEN: Final = "ordermigrate validate, record-hash, 10 differ"
WHOLE: Final = "one MD5 pass"
IMAGES: Final = "one MD5 pass over binary images"
RELADIFF: Final = "reladiff"
RELADIFF_TEN: Final = "reladiff, 10 differ"
MOST_EQUAL: Final = 1.10
MOST_TEN: Final = 1.50
LEAST_RELADIFF: Final = 2.0
DIFFERENT: Final = "hub_order_service_different"
_DIFFERENT_SOURCE: Final = "hub_investments_different"
_DIFFERENT_EXIT_CODE: Final = 4

_KEYS: LiteralString = """
SELECT id FROM (
    SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS rows FROM public.orders
) AS numbered WHERE place % (rows / 8) = 1 ORDER BY id LIMIT 8
"""
# What a migration gets wrong, the smallest case of each, for one key.
_CHANGES: Sequence[LiteralString] = (
    "UPDATE public.orders SET quantity = quantity + 0.00000001 WHERE id = {}",
    "UPDATE public.orders SET failure_reason = coalesce(failure_reason, '') || ' ' WHERE id = {}",
    "UPDATE public.orders SET updated_at = updated_at + interval '1 microsecond' WHERE id = {}",
    "UPDATE public.orders SET price = coalesce(price, 0) + 1 WHERE id = {}",
    "UPDATE public.orders SET retry_count = coalesce(retry_count, 0) + 1 WHERE id = {}",
    "UPDATE public.orders SET processing_worker_id = 'none' WHERE id = {}",
    "DELETE FROM public.orders WHERE id = {}",
    "DELETE FROM public.orders WHERE id = {}",
)

_INSERT_TWO: LiteralString = """
INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity, status)
SELECT gen_random_uuid(), user_id, symbol, order_type, order_side, quantity, status
FROM public.orders LIMIT 2 RETURNING id
"""


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return who takes part; reladiff where it is on the PATH or named by RELADIFF."""
    keys = prepare_targets(ground)
    found = [
        make_ours(ground, OURS, SOURCE, TARGET),
        make_ours(ground, OURS_FAST, SOURCE, TARGET, algorithm="record-hash"),
        make_ours(ground, OURS_TEN, _DIFFERENT_SOURCE, DIFFERENT, keys=keys),
        make_ours(
            ground,
            OURS_FAST_TEN,
            _DIFFERENT_SOURCE,
            DIFFERENT,
            algorithm="record-hash",
            keys=keys,
        ),
        _make_pass(
            ground,
            WHOLE,
            "md5(convert_to(ROW(...)::text, 'UTF8')) by two psql at once, sums compared",
            "convert_to(ROW({})::text, 'UTF8')",
        ),
        _make_pass(
            ground,
            IMAGES,
            "the same of record_send(ROW(...)), what ordermigrate digests",
            "record_send(ROW({}))",
        ),
    ]
    program = os.environ.get("RELADIFF") or shutil.which("reladiff")
    if program:
        found.append(_make_reladiff(ground, program, RELADIFF, TARGET, lines=0))
        # A changed row is told in two lines, one that is on one side only in one.
        lines = 2 * (len(_CHANGES) - 2) + 4
        found.append(_make_reladiff(ground, program, RELADIFF_TEN, DIFFERENT, lines=lines))
    return found


def prepare_targets(ground: Ground) -> list[str]:
    """Make one target that equals its source and one with ten differences; return their keys."""
    make_equal(ground, SOURCE, TARGET)
    # A migration has one source and one target: both count the rounds.
    clone(ground.monolith, SOURCE, _DIFFERENT_SOURCE)
    make_equal(ground, _DIFFERENT_SOURCE, DIFFERENT)
    # The service is fenced: only who shows the pass may make it differ.
    pass_word = fetch(ground.target(DIFFERENT), "SELECT pass FROM ordermigrate.side")[0][0]
    target = f"{ground.target(DIFFERENT)}?options=-cordermigrate.pass%3D{pass_word}"
    keys = [str(key) for (key,) in fetch(target, _KEYS)]
    for key, change in zip(keys, _CHANGES, strict=True):
        execute(target, sql.SQL(change).format(sql.Literal(key)))
    return sorted([*keys, *(str(key) for (key,) in fetch(target, _INSERT_TWO))])


def make_equal(ground: Ground, source: str, target: str) -> None:
    """Copy a source by our own command, and have a comparison of another make look at it."""
    ground.forget_migration(source)
    ground.make_target(target)
    ground.ordermigrate("copy", source=source, target=target)
    ground.verify_job(target, source, is_thorough=True)
    for dsn in (ground.source(source), ground.target(target)):
        execute(dsn, "VACUUM (ANALYZE)")


def make_ours(
    ground: Ground,
    name: str,
    source: str,
    target: str,
    *,
    algorithm: str = "md5",
    keys: Sequence[str] = (),
) -> Contestant:
    """Return our whole command as a contestant; `keys` are those that it has to name."""
    output: list[str] = []

    def run() -> Usage:
        ended = ground.ordermigrate(
            *("validate", "--checksums", "--algorithm", algorithm, "--json"),
            source=source,
            target=target,
            expected=(_DIFFERENT_EXIT_CODE,) if keys else (0,),
        )
        output[:] = [ended.output]
        return ended.usage

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        table = json.loads(output[0])["tables"][0]
        named = sorted(_key_text(each["key"]) for each in table["differences"])
        if table["differences_total"] != len(keys) or named != list(keys):
            raise WrongResult(f"{name} named {named} instead of {list(keys)}")

    note = f"ordermigrate validate --checksums --algorithm {algorithm}: the whole command"
    return Contestant(name, note, _nothing, run, verify)


def _key_text(key: object) -> str:
    """Return a key of one column as text, whatever it is wrapped in."""
    if isinstance(key, dict):
        key = next(iter(key.values()))
    if isinstance(key, list):
        key = key[0]
    return str(key)


def _make_pass(ground: Ground, name: str, note: str, image: str) -> Contestant:
    row = image.format(", ".join(ground.columns()))
    query = (
        "SELECT count(*), sum(b::bit(64)::bigint), sum((b << 64)::bit(64)::bigint) "  # noqa: S608
        f"FROM (SELECT ('x' || md5({row}))::bit(128) AS b FROM public.orders OFFSET 0) AS digest"
    )
    output: list[str] = []

    def run() -> Usage:
        ended = ground.run(
            [ground.psql(ground.source(), query)], [ground.psql(ground.target(), query)]
        )
        output[:] = [each.output for each in ended]
        return total(ended)

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        if len(set(output)) != 1 or not output[0].startswith(f"{ground.rows}|"):
            raise WrongResult(f"{name} found {output}")

    return Contestant(name, note, _nothing, run, verify)


def _make_reladiff(
    ground: Ground, program: str, name: str, target: str, *, lines: int
) -> Contestant:
    columns = [option for column in ground.columns()[1:] for option in ("-c", column)]
    output: list[str] = []

    def run() -> Usage:
        ended = ground.run(
            [
                [
                    *(program, ground.source(), "public.orders"),
                    *(ground.target(target), "public.orders"),
                    *("-k", "id", *columns, "-j", "2", "--json"),
                    # Sorting its results fails where a value is NULL, with exit code 0.
                    "--skip-sort-results",
                ]
            ]
        )
        output[:] = re.findall(r'^\["[-+]"', ended[0].output, re.MULTILINE)
        return total(ended)

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        del is_thorough
        if len(output) != lines:
            raise WrongResult(f"{name} told {len(output)} rows instead of {lines}")

    return Contestant(name, "-k id, all columns, -j 2, unsorted", _nothing, run, verify)


def _nothing() -> None:
    """Leave the databases as they are."""


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets, and what was measured."""
    targets = [
        compare("equal tables", series[OURS], series[WHOLE], at_most=MOST_EQUAL),
        compare("10 rows differ", series[OURS_TEN], series[WHOLE], at_most=MOST_TEN),
    ]
    if RELADIFF in series:
        targets += [
            compare("equal tables", series[OURS], series[RELADIFF], at_least=LEAST_RELADIFF),
            compare(
                "10 rows differ", series[OURS_TEN], series[RELADIFF_TEN], at_least=LEAST_RELADIFF
            ),
        ]
    return targets
