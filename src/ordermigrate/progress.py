"""What happens, as frozen events, and the one-method `Reporter` that is told of it.

Screens, logs and tests all listen to this one stream; nothing in the work itself knows who
listens. An event is reported after the fact that it names has become durable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened.

    A frequent one may come many times a second, for days: logs have it at level debug.
    """

    is_frequent: ClassVar[bool] = False

    @classmethod
    def name(cls) -> str:
        """Return the event's name in logs: the class name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the event's fields by name, without building copies of their values."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


@dataclass(frozen=True, slots=True)
class Prepared(Event):
    """Side rows and ledger exist, and the service's tables are ready to be filled."""

    run: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotTaken(Event):
    """An attempt of the copy has its snapshot, and knows what is left to be copied."""

    attempt: int
    chunks_total: int
    chunks_copied: int
    rows_copied: int
    bytes_copied: int
    rows_estimate: int


@dataclass(frozen=True, slots=True)
class IndexesDropped(Event):
    """Indexes and constraints of a target table were recorded and dropped for the load."""

    table: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BytesMoved(Event):
    """How many bytes an attempt has streamed so far, committed or not; told twice a second.

    For bars, not for books: of this event alone the fact is not durable.
    """

    is_frequent: ClassVar[bool] = True
    bytes: int


@dataclass(frozen=True, slots=True)
class ChunkCopied(Event):
    """A chunk's rows and its ledger row are committed on the target."""

    table: str
    chunk: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ChunkFound(Event):
    """A chunk was found committed: an earlier try had done it, but its reply was lost."""

    table: str
    chunk: int


@dataclass(frozen=True, slots=True)
class LeafRewritten(Event):
    """A source leaf has another file, or was detached a while; its rows go, to be copied again."""

    table: str
    leaf: str
    rows_removed: int


@dataclass(frozen=True, slots=True)
class LeafGone(Event):
    """A source leaf is not part of its table any more; its rows were removed."""

    table: str
    leaf: str
    rows_removed: int


@dataclass(frozen=True, slots=True)
class Subtracted(Event):
    """Copied rows that had changed between two snapshots were taken off; sync brings them."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Throttled(Event):
    """The copy waits for the source, and why; an empty reason says that it goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class AttemptEnded(Event):
    """An attempt ended before all was copied; another follows under a new snapshot."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class RowsCopied(Event):
    """All chunks of all tables are on the target."""

    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class IndexStarted(Event):
    """An index or constraint is being built."""

    table: str
    index: str


@dataclass(frozen=True, slots=True)
class IndexBuilt(Event):
    """An index or constraint is there again, as it was recorded."""

    table: str
    index: str
    seconds: float
    remaining: int


@dataclass(frozen=True, slots=True)
class Analyzed(Event):
    """The planner's statistics of a target table are fresh."""

    table: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Following(Event):
    """Sync has both sides, and rounds begin, from the owner to the other side."""

    run: str
    source: str


@dataclass(frozen=True, slots=True)
class RoundBegun(Event):
    """A round has the target's side row and the source's snapshot."""

    is_frequent: ClassVar[bool] = True
    round: int


@dataclass(frozen=True, slots=True)
class ChangesStaged(Event):
    """The rows of a table's changed keys are staged on the target; nothing is written yet."""

    is_frequent: ClassVar[bool] = True
    table: str
    changes: int


@dataclass(frozen=True, slots=True)
class ChangesWritten(Event):
    """A table is written and verified; nothing is committed yet."""

    is_frequent: ClassVar[bool] = True
    table: str
    written: int
    deleted: int


@dataclass(frozen=True, slots=True)
class RoundHalfCommitted(Event):
    """The target has committed a round; the source still has its changes in its logs."""

    is_frequent: ClassVar[bool] = True
    round: int


@dataclass(frozen=True, slots=True)
class RoundApplied(Event):
    """A round is committed on both sides.

    `remaining` changes were left for the next one. `lag_seconds` is the age that the oldest change
    had when the round began. `quarantined` rows were refused that had not been before.
    """

    is_frequent: ClassVar[bool] = True
    round: int
    changes: int
    remaining: int
    written: int
    deleted: int
    lag_seconds: float
    seconds: float
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class RowsQuarantined(Event):
    """The target has refused rows of a table that it had not refused before; others are there."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Quiet(Event):
    """A look at the source has found nothing waiting in its logs."""

    is_frequent: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SyncWaits(Event):
    """Sync cannot go on at the moment, and tries again."""

    reason: str


@dataclass(frozen=True, slots=True)
class StructureSettled(Event):
    """Something about the tables has changed, and was dealt with."""

    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ValidationVoided(Event):
    """What was proved before does not count any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class TrafficSet(Event):
    """The share of users whose reads go to the service is another one now, in both databases."""

    percentage: int


@dataclass(frozen=True, slots=True)
class TrafficHeldBack(Event):
    """Lag has stayed over its limit, so in this database nobody's reads go to the service now."""

    side: str
    was_percentage: int
    lag_seconds: float
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class Repairing(Event):
    """Keys of differing rows were put into the log, to be applied by the next round."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Freezing(Event):
    """All that can be done beforehand is done; the owner's tables are to be locked now."""

    side: str


@dataclass(frozen=True, slots=True)
class Frozen(Event):
    """Writers wait at the owner's tables from now on; nothing of the change is durable."""

    side: str


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """The last round is committed: both sides hold the same rows, and nobody writes."""

    round: int
    changes: int


@dataclass(frozen=True, slots=True)
class IntentNoted(Event):
    """The side that is to own the tables has on record that the other is about to let go."""

    side: str


@dataclass(frozen=True, slots=True)
class LetGo(Event):
    """The old owner is fenced; until the other side has taken over nobody owns the tables."""

    side: str


@dataclass(frozen=True, slots=True)
class TakenOver(Event):
    """The new owner takes writes. `pause_seconds` is for how long no side did, at most."""

    side: str
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class TakenBack(Event):
    """A change of owner was undone: who had the tables has them again."""

    side: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reclaimed(Event):
    """The keys of what the service has written since a moment are in its change logs."""

    since: str
    rows: int


@dataclass(frozen=True, slots=True)
class Settled(Event):
    """What can be done at leisure after a change of owner is done."""

    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancelled(Event):
    """Every trace of the migration is gone from both sides."""

    run: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CleanupBegun(Event):
    """Both sides say that a cleanup is under way; nothing else is done yet."""

    run: str


@dataclass(frozen=True, slots=True)
class BackedUp(Event):
    """The monolith's tables are in a file that was read back whole."""

    file: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TablesRenamed(Event):
    """The monolith's tables have other names; whoever still uses them is told by an error."""

    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamesRestored(Event):
    """The monolith's tables have their names back, and the cleanup is off."""

    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropDecided(Event):
    """The tables are about to be dropped; from here on there is no way back."""

    run: str


@dataclass(frozen=True, slots=True)
class TablesDropped(Event):
    """The monolith's tables are gone."""

    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropNoted(Event):
    """The service knows that the monolith's tables are gone."""

    run: str


@dataclass(frozen=True, slots=True)
class TraceRemoved(Event):
    """Nothing of ours is left in the database of one side."""

    side: str


@dataclass(frozen=True, slots=True)
class CheckStarted(Event):
    """One check of a validation has begun."""

    table: str
    check: str
    rows_estimate: int


@dataclass(frozen=True, slots=True)
class CheckFinished(Event):
    """One check of a validation has its result."""

    table: str
    check: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Locating(Event):
    """The checksums differ; the rows that do are being looked for."""

    table: str
    parts: int
    parts_total: int


class Reporter(Protocol):
    """Whoever wants to be told."""

    def report(self, event: Event) -> None:
        """Take note of `event`; must not block and must not raise."""
        ...
