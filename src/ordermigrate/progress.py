"""What happens, as frozen events, and the one-method `Reporter` that is told of it.

Screens, logs and tests all listen to this one stream; nothing in the work itself knows who
listens. An event is reported after the fact that it names has become durable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""

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
    """A source leaf has another file than before; its rows were removed, to be copied again."""

    table: str
    leaf: str
    rows_removed: int


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
class PromiseChecked(Event):
    """Whether the source was written to during an offline copy, and how that was seen."""

    kept: bool
    found: tuple[str, ...]


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
