"""Events: their names are what logs and other people's programs rely on."""

from __future__ import annotations

import dataclasses

import pytest

from ordermigrate import progress
from ordermigrate.progress import Event

NAMES = {
    "analyzed",
    "attempt_ended",
    "backed_up",
    "cancelled",
    "changes_staged",
    "changes_written",
    "check_finished",
    "check_started",
    "chunk_copied",
    "chunk_found",
    "cleanup_begun",
    "drop_decided",
    "drop_noted",
    "following",
    "index_built",
    "index_started",
    "indexes_dropped",
    "leaf_gone",
    "leaf_rewritten",
    "locating",
    "names_restored",
    "prepared",
    "quiet",
    "repairing",
    "round_applied",
    "round_begun",
    "round_half_committed",
    "rows_copied",
    "rows_quarantined",
    "snapshot_taken",
    "structure_settled",
    "subtracted",
    "sync_waits",
    "tables_dropped",
    "tables_renamed",
    "throttled",
    "traffic_held_back",
    "traffic_set",
    "trace_removed",
    "validation_voided",
}
# What comes many times a second for as long as sync runs, or bytes move.
FREQUENT = {
    "bytes_moved",
    "changes_staged",
    "changes_written",
    "quiet",
    "round_applied",
    "round_begun",
    "round_half_committed",
}


def every_event() -> list[type[Event]]:
    found = [kind for kind in vars(progress).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, Event) and kind is not Event]


def test_an_events_name_stays_what_it_is() -> None:
    found = [kind.name() for kind in every_event()]
    assert len(set(found)) == len(found)
    assert set(found) >= NAMES


@pytest.mark.parametrize("kind", every_event(), ids=lambda kind: kind.__name__)
def test_an_event_is_frozen_described_and_tells_its_fields_in_their_order(
    kind: type[Event],
) -> None:
    fields = [field.name for field in dataclasses.fields(kind)]
    event = kind(*range(len(fields)))
    assert dict(event.items()) == {name: number for number, name in enumerate(fields)}
    assert list(dict(event.items())) == fields
    assert not (kind.__doc__ or "").startswith(
        kind.__name__
    )  # what dataclasses write by themselves
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(event, (fields or ["anything"])[0], None)


def test_just_what_comes_many_times_a_second_is_frequent() -> None:
    assert {kind.name() for kind in every_event() if kind.is_frequent} == FREQUENT


def test_no_field_is_called_like_what_every_log_line_has() -> None:
    reserved = {"event", "level", "at", "command", "logger"}
    for kind in every_event():
        assert not reserved & {field.name for field in dataclasses.fields(kind)}, kind


def test_the_reporters_name_is_a_protocol_of_one_method() -> None:
    methods = [name for name in vars(progress.Reporter) if not name.startswith("_")]
    assert methods == ["report"]
