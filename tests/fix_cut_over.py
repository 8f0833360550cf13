"""A migration whose owner is the service, or the monolith again, some time ago."""

# ruff: noqa: S608  the statements are the test's own

from __future__ import annotations

import asyncio

from ordermigrate import ledger
from ordermigrate.model import Side
from tests.fix_pairs import Pair
from tests.integration import ground

MONTHS = "60 days"


def cut_over(pair: Pair, *, ago: str = MONTHS, is_proved: bool = True) -> Pair:
    """Make the service the owner, and say that it was so long ago; prove every row equal now."""
    _succeed(pair, "sync", "--until-caught-up")
    _succeed(pair, "validate", "--checksums")
    _succeed(pair, "cutover")
    pair.on_service(f"UPDATE ordermigrate.run SET phase_since = now() - interval '{ago}'")
    if is_proved:
        _succeed(pair, "validate", "--checksums")
    else:
        pair.on_service(
            f"UPDATE ordermigrate.validation SET finished_at = now() - interval '{ago}'"
        )
    return pair


def roll_back(pair: Pair) -> Pair:
    """Make the monolith the owner again."""
    _succeed(pair, "rollback")
    return pair


def prove(
    pair: Pair, *, verdict: str = "equal", algorithm: str | None = "md5", ago: str = "0"
) -> None:
    """Put a validation on record."""
    asyncio.run(_prove(pair, verdict, algorithm))
    pair.on_service(f"UPDATE ordermigrate.validation SET finished_at = now() - interval '{ago}'")


async def _prove(pair: Pair, verdict: str, algorithm: str | None) -> None:
    async with ground.opened(pair.service, Side.SERVICE) as service:
        run = await ledger.read_run(service)
        assert run is not None
        standing = await ledger.read_standing(service)
        await ledger.record_validation(service, run.run, standing, verdict, algorithm, [], 1.0)


def _succeed(pair: Pair, *args: str) -> None:
    done = pair.run(*args)
    assert done.exit_code == 0, (args, done.stdout, done.stderr)
