"""The phases: one complete table, and next steps that break nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import click
import pytest

from ordermigrate import phases
from ordermigrate.cli.app import COMMANDS, cli
from ordermigrate.errors import Refused
from ordermigrate.phases import Phase

# A repair destroys nothing: it brings the rows that differ once more, as the owner has them.
DESTRUCTIVE = ("--restart", "--force", "--drop", "--adopt", "--confirm", "cleanup", "cancel")
PAIRS = list(itertools.product(Phase, Phase))


def test_every_phase_has_a_meaning_and_a_row_in_the_table() -> None:
    assert list(phases.MEANING) == list(phases.FOLLOWING) == list(Phase)


def test_every_phase_can_be_reached_from_the_first() -> None:
    reached = {Phase.NEW}
    for _ in Phase:
        reached |= {new for old in reached for new in phases.FOLLOWING[old]}
    assert reached == set(Phase)


def test_no_phase_is_a_dead_end_and_none_leads_back_to_before_the_ledger() -> None:
    assert all(phases.FOLLOWING.values())
    assert all(Phase.NEW not in following for following in phases.FOLLOWING.values())


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_transition_is_allowed_exactly_when_the_table_has_it_or_nothing_changes(
    old: Phase, new: Phase
) -> None:
    if new is old or new in phases.FOLLOWING[old]:
        phases.check_transition(old, new)
        return
    with pytest.raises(Refused, match="ordermigrate status") as refused:
        phases.check_transition(old, new)
    assert phases.MEANING[old] in str(refused.value)


def every_next_step() -> list[phases.NextStep]:
    return [step for steps in every_answer() for step in steps]


def every_answer() -> Iterator[list[phases.NextStep]]:
    for phase in Phase:
        for verdict in (None, "equal", "different"):
            for is_void, has_checksums, is_syncing in itertools.product((False, True), repeat=3):
                yield phases.next_steps(
                    phase,
                    verdict,
                    is_void=is_void,
                    has_checksums=has_checksums,
                    is_syncing=is_syncing,
                )


def test_there_is_always_a_next_step_with_a_reason() -> None:
    for steps in every_answer():
        assert steps
        assert all(step.reason for step in steps)


def test_next_steps_destroy_nothing() -> None:
    for step in every_next_step():
        assert not any(word in step.command for word in DESTRUCTIVE), step.command


@pytest.mark.parametrize("command", sorted({step.command for step in every_next_step()}))
def test_a_next_step_is_a_command_line_that_the_program_takes(command: str) -> None:
    program, name, *options = command.split()
    assert program == "ordermigrate"
    assert name in COMMANDS
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    known = {option for parameter in found.params for option in parameter.opts}
    assert set(options) <= known


def commands(phase: Phase, verdict: str | None = None, **facts: bool) -> list[str]:
    steps = phases.next_steps(phase, verdict, **facts)
    return [step.command.removeprefix("ordermigrate ") for step in steps]


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.PREPARED, Phase.COPYING])
def test_before_the_copy_is_complete_the_next_step_is_to_copy(phase: Phase) -> None:
    assert commands(phase) == ["copy"]


@pytest.mark.parametrize("phase", [Phase.COPIED, Phase.SYNCING])
def test_after_the_copy_the_next_step_is_sync_unless_one_is_at_work(phase: Phase) -> None:
    assert commands(phase, "equal", has_checksums=True) == ["sync"]
    assert commands(phase, "equal", has_checksums=True, is_syncing=True) == ["cutover --dry-run"]


def test_after_a_cutover_the_next_step_is_sync_for_it_keeps_the_way_back_open() -> None:
    facts = {"has_checksums": True}
    assert commands(Phase.CUT_OVER, "equal", **facts) == ["sync"]
    assert commands(Phase.CUT_OVER, "equal", is_syncing=True, **facts) == ["status"]


@pytest.mark.parametrize("phase", [Phase.COPIED, Phase.SYNCING])
@pytest.mark.parametrize(
    ("verdict", "facts"),
    [
        (None, {}),
        ("equal", {"is_void": True, "has_checksums": True}),
        ("equal", {"has_checksums": False}),
        ("different", {"is_void": True, "has_checksums": True}),
    ],
)
def test_a_copy_is_not_called_proved_before_a_valid_verdict_over_every_row(
    phase: Phase, verdict: str | None, facts: dict[str, bool]
) -> None:
    assert commands(phase, verdict, **facts) == ["sync", "validate --checksums"]
    assert commands(phase, verdict, **facts, is_syncing=True) == ["validate --checksums"]


def test_differences_are_to_be_repaired_once_their_cause_is_known() -> None:
    steps = phases.next_steps(Phase.SYNCING, "different", has_checksums=True, is_syncing=True)
    assert [step.command for step in steps] == ["ordermigrate validate --checksums --repair"]
    assert "cause" in steps[0].reason
