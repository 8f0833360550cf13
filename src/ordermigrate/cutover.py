"""Cutover: move the ownership along a direction, or leave it where it was.

Rollback is the same function, pointed the other way. What a command finds in the two side rows
tells it where an earlier one has stopped: a change that was cut off between its two commits is
finished, or undone with `--abort`; one that was cut off before the first never happened.
"""

from __future__ import annotations

import asyncio
import contextlib

from ordermigrate import (
    changes,
    db,
    following,
    handover,
    ledger,
    readiness,
    recovery,
    settling,
    sync,
)
from ordermigrate.changes import Change
from ordermigrate.config import Config
from ordermigrate.following import Footing
from ordermigrate.model import Direction
from ordermigrate.outcomes import OwnerChange
from ordermigrate.progress import Reporter
from ordermigrate.readiness import Scene
from ordermigrate.sync import Tally

# A last round of so many changes is small; until one is, rounds are run without stopping anyone.
SMALL_ROUND = 2_000
MAX_ROUNDS = 20


async def change_owner(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    *,
    max_pause_seconds: float,
    is_dry_run: bool = False,
    is_aborting: bool = False,
) -> OwnerChange:
    """Make the direction's target the owner of the tables.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        direction: Forward is cutover, reverse is rollback.
        max_pause_seconds: For how long no side may take a write; beyond it all is undone.
        is_dry_run: Whether only to look at the gates, and to time what can be timed.
        is_aborting: Whether to undo a change that was cut off, instead of finishing it.

    Raises:
        Refused: A gate is shut; all of them are told.
        Undone: It failed, and the owner is who it was.
        Stranded: Nobody owns the tables, or two do, and it could not be mended.

    """
    async with db.open_pair(config, direction.command) as (monolith, service):
        await following.require_copied(monolith, service)
        if not is_dry_run:
            await ledger.take_operator_lock(service)
        sessions = {each.side: each for each in (monolith, service)}
        hot, cold = sessions[direction.source], sessions[direction.target]
        done = await recovery.go_on(
            config, reporter, direction, hot, cold, is_dry_run=is_dry_run, is_aborting=is_aborting
        )
        if done is not None:
            return await settling.complete(monolith, service, done)
        if not is_dry_run:
            await settling.arm(config, monolith, service, mends_capture=False)
        tally = Tally()

        async def work() -> OwnerChange:
            async with following.stand(config, direction.command, reporter) as footing:
                return await _change(
                    config,
                    reporter,
                    direction,
                    footing,
                    tally,
                    max_pause_seconds,
                    is_dry_run=is_dry_run,
                )

        changed = await following.persist_to_end(config, tally, reporter, work)
        if is_dry_run:
            return await settling.complete(monolith, service, changed)
        return await settling.settle_done(config, monolith, service, reporter, changed)


async def _change(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    footing: Footing,
    tally: Tally,
    max_pause_seconds: float,
    *,
    is_dry_run: bool,
) -> OwnerChange:
    scene = Scene(config, direction, footing.hot, footing.cold, footing.maps)
    found = await readiness.look(scene)
    notes = await readiness.find_notes(scene, max_pause_seconds)
    if is_dry_run:
        return OwnerChange(
            footing.run.run,
            footing.run.phase,
            direction,
            "planned",
            direction.source.value,
            None,
            tuple(found),
            tuple(await readiness.measure(scene)),
            tuple(describe_steps(scene, max_pause_seconds)),
            tuple(notes),
        )
    readiness.require_open(found, direction)
    is_at_work = await ledger.is_sync_at_work(footing.service)
    line = footing.line
    change = Change(
        config,
        direction,
        line.run,
        line.epoch,
        footing.maps,
        await changes.look(footing.hot, scene.sources),
        await changes.look(footing.cold, scene.targets),
        max_pause_seconds,
        reporter,
    )
    await _drain(footing, tally, reporter)
    # Whoever else runs rounds waits until the owner has changed, and then finds that it has.
    await line.target.fetch_one("rounds", "hold_turn")
    # What was proved may have become void since, by a round of ours or of another sync.
    readiness.require_open([await readiness.look_at_proof(scene)], direction)
    pause = await handover.hand_over(change, line, footing.cold)
    with contextlib.suppress(Exception):  # it goes with the session, too, as where that failed
        await line.target.fetch_one("rounds", "release_turn")
    return OwnerChange(
        footing.run.run,
        footing.run.phase,
        direction,
        "done",
        direction.target.value,
        pause,
        tuple(found),
        (),
        (),
        (*notes, *change.notes),
        switched=change.switched,
        is_syncing=is_at_work,
    )


async def _drain(footing: Footing, tally: Tally, reporter: Reporter) -> None:
    """Run rounds until one is small, so that the last one, for which writers wait, is short."""
    for _ in range(MAX_ROUNDS):
        done = await sync.run_whole(footing.line, tally, reporter)
        tally.alive_at = asyncio.get_running_loop().time()
        if done.changes <= SMALL_ROUND:
            return


def describe_steps(scene: Scene, max_pause_seconds: float) -> list[str]:
    """Say what a change of owner does, in order."""
    hot, cold = scene.hot.side, scene.cold.side
    return [
        f"run rounds until little is waiting on the {hot}",
        f"lock the {hot}'s tables against writers, not readers, {max_pause_seconds:g} s at most",
        "run the last round, under a snapshot taken after that lock, and verify its rows",
        f"set the {cold}'s sequences past the {hot}'s",
        f"write on the {cold} what is about to happen",
        f"commit on the {hot}: fence on, capture off; writers that waited are told so",
        f"commit on the {cold}: fence off, capture on, its own triggers and foreign keys back",
        f"at leisure: switch the {hot}'s triggers off, have those foreign keys look at all rows",
    ]
