"""What screens, logs and status lines reckon from the stream of events: sums, rates, times."""

from __future__ import annotations

import time
from collections import deque

from ordermigrate import progress as events
from ordermigrate.progress import Event

RATE_SECONDS = 10.0


def format_bytes(count: float) -> str:
    """Return a size in the largest unit that keeps it above one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:  # noqa: PLR2004  the step from unit to unit
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


class CopyMeter:
    """Adds up what a copy has moved, and reckons its rate and the time that is left.

    Committed chunks are counted; what is still on its way is reckoned from its bytes.
    """

    def __init__(self) -> None:
        self.rows = self.bytes = self.estimate = self.chunks = self.chunks_total = 0
        self._before = (0, 0, 0)
        self._moved = 0
        self._started = time.monotonic()

    def begin(self, event: events.SnapshotTaken) -> None:
        """Start from what earlier attempts have copied."""
        self.rows, self.bytes = event.rows_copied, event.bytes_copied
        self.estimate = event.rows_estimate
        self.chunks, self.chunks_total = event.chunks_copied, event.chunks_total
        self._before = self.rows, self.bytes, self.chunks
        self._moved = 0
        self._started = time.monotonic()

    def add(self, event: events.ChunkCopied) -> None:
        """Take in a chunk."""
        self.rows += event.rows
        self.bytes += event.bytes
        self.chunks += 1

    def move(self, event: events.BytesMoved) -> None:
        """Take in what this attempt has streamed."""
        self._moved = event.bytes

    @property
    def bytes_under_way(self) -> int:
        """Bytes that are streamed but not committed."""
        return max(0, self._before[1] + self._moved - self.bytes)

    @property
    def chunks_done(self) -> float:
        """Chunks, with those under way by their bytes."""
        if not self.chunks or not self.bytes:
            return float(self.chunks)
        return min(
            self.chunks + self.bytes_under_way / (self.bytes / self.chunks), self.chunks_total
        )

    @property
    def rows_done(self) -> int:
        """Rows, with those under way by their bytes."""
        if not self.rows or not self.bytes:
            return self.rows
        return self.rows + round(self.bytes_under_way * self.rows / self.bytes)

    @property
    def rows_per_second(self) -> float:
        """The rate of this attempt so far."""
        return (self.rows_done - self._before[0]) / max(time.monotonic() - self._started, 1e-6)

    @property
    def remaining_seconds(self) -> float | None:
        """An estimate by chunks; None before the first."""
        done = self.chunks_done - self._before[2]
        if done <= 0:
            return None
        return (time.monotonic() - self._started) / done * (self.chunks_total - self.chunks_done)

    def describe(self) -> str:
        """Say it in one line."""
        rows = f"{self.rows_done:,} rows"
        if self.estimate:
            rows = f"{self.rows_done:,} of ~{max(self.estimate, self.rows_done):,} rows"
        parts = [rows, format_bytes(self.bytes + self.bytes_under_way)]
        if self.rows_done > self._before[0]:
            parts.append(f"{self.rows_per_second:,.0f} rows/s")
        if self.remaining_seconds is not None and self.chunks < self.chunks_total:
            parts.append(f"ETA ~{format_seconds(self.remaining_seconds)}")
        return ", ".join(parts)


class SyncMeter:
    """Adds up what sync has done, and says it in one line of fixed keys.

    `waits` is why no round is under way: `idle`, or what sync waits for; `-` while it works.
    """

    def __init__(self) -> None:
        self.round = self.changes = self.written = self.deleted = self.remaining = 0
        self.lag_seconds = 0.0
        self.waits = "-"
        self._recent: deque[float] = deque()

    def take(self, event: Event) -> bool:
        """Take in an event; return whether the line says something new because of it."""
        match event:
            case events.Following():
                self.waits = "-"
            case events.RoundApplied():
                self.round = event.round
                self.changes += event.changes
                self.written += event.written
                self.deleted += event.deleted
                self.remaining = event.remaining
                self.lag_seconds = event.lag_seconds
                self._recent.append(time.monotonic())
                self.waits = "-"
            case events.Quiet():
                self.remaining, self.lag_seconds = 0, 0.0
                self.waits = "idle"
            case events.SyncWaits(reason=reason):
                is_new = reason != self.waits
                self.waits = reason
                return is_new
            case _:
                pass
        return False

    @property
    def rounds_per_second(self) -> float:
        """Rounds a second, over the last ten."""
        now = time.monotonic()
        while self._recent and now - self._recent[0] > RATE_SECONDS:
            self._recent.popleft()
        return len(self._recent) / RATE_SECONDS

    def figures(self) -> dict[str, str | float | int]:
        """Return the keys of the line with their values, always the same keys."""
        return {
            "round": self.round,
            "backlog": self.remaining,
            "lag_seconds": round(self.lag_seconds, 2),
            "rounds_per_second": round(self.rounds_per_second, 1),
            "changes": self.changes,
            "written": self.written,
            "deleted": self.deleted,
            "waits": self.waits,
        }

    def describe(self) -> str:
        """Return the line."""
        return "sync: " + " ".join(
            f"{name}={value!r}" if " " in str(value) else f"{name}={value}"
            for name, value in self.figures().items()
        )
