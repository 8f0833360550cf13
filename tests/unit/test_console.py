"""What people see while a command works: figures, lines, and no line left out."""

from __future__ import annotations

import dataclasses
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ordermigrate import console
from ordermigrate import progress as events
from ordermigrate.console import describe_event
from ordermigrate.meters import CopyMeter, SyncMeter, format_bytes, format_seconds

SNAPSHOT = events.SnapshotTaken(2, 10, 4, 400, 4_000, 1_000)
CHUNK = events.ChunkCopied("public.orders", 5, 100, 1_000)
ROUND = events.RoundApplied(7, 5, 100, 3, 2, 0.5, 0.1)
SAMPLES: list[tuple[events.Event, str | None]] = [
    (events.TrafficSet(25), None),
    (
        events.TrafficHeldBack("monolith", 25, 12.3, 5),
        (
            "reads are held back: 0 % go to the service by the monolith's word, 25 % did; "
            "the service is 12.3 s behind"
        ),
    ),
    (events.Prepared("run-1", ("a", "b")), "prepared migration run-1\n  a\n  b"),
    (events.IndexesDropped("t", ("a", "b")), "t: 2 indexes and keys are off for the load"),
    (SNAPSHOT, "attempt 2: 10 chunks, 4 of them copied already"),
    (events.SnapshotTaken(1, 10, 0, 0, 0, 0), "attempt 1: 10 chunks"),
    (events.ChunkFound("t", 3), "t: chunk 3 was committed by an earlier try"),
    (
        events.LeafRewritten("t", "t_1", 1_234),
        "t: t_1 was rewritten, or away; its 1,234 rows come again",
    ),
    (events.AttemptEnded(1, "why"), "attempt 1 ended: why; going on under a new snapshot"),
    (events.RowsCopied(2_000, 2_048, 2.0), "copied 2,000 rows (2.0 KiB) in 2.0 s, 1,000 rows/s"),
    (events.IndexBuilt("t", "i", 1.5, 2), "t: built i in 1.5 s, 2 to go"),
    (events.IndexBuilt("t", "i", 1.5, 0), "t: built i in 1.5 s"),
    (events.Analyzed("t", 0.25), "t: statistics gathered in 0.2 s"),
    (
        events.LeafGone("t", "t_1", 1_234),
        "t: t_1 is not part of it any more; its 1,234 rows were removed",
    ),
    (
        events.Subtracted("t", 1_234),
        "t: 1,234 rows had changed between two snapshots; sync brings them",
    ),
    (events.Throttled("the file x is there"), "the copy waits: the file x is there"),
    (events.Throttled(""), "the copy goes on"),
    (events.Following("run-1", "service"), "following the service (migration run-1)"),
    (events.Freezing("monolith"), "all is ready; the monolith's writers are to wait now"),
    (events.Frozen("monolith"), "frozen: writers wait at the monolith"),
    (events.Drained(1_234, 5_678), "drained: the last round, 1,234, took 5,678 changes"),
    (events.IntentNoted("service"), None),
    (events.LetGo("monolith"), "the monolith has let go, and is fenced off"),
    (
        events.TakenOver("service", 0.0421),
        "the service has taken over: it owns the tables; the pause was 42 ms at most",
    ),
    (events.TakenOver("service", 0.0), "the service has taken over: it owns the tables"),
    (events.TakenBack("monolith", "why"), "the monolith owns the tables again: why"),
    (
        events.Reclaimed("2026-11-21T03:00:00+00:00", 1_234),
        "1,234 rows that the service has written since 2026-11-21T03:00:00+00:00 are to come back",
    ),
    (events.Settled(("a", "b")), "a\nb"),
    (events.StructureSettled(("a", "b")), "a\nb"),
    (events.ValidationVoided("why"), "what was proved before is void: why"),
    (events.Cancelled("run-1", ("a",)), "migration run-1 is gone from both sides"),
    (events.CleanupBegun("run-1"), "cleaning up after migration run-1"),
    (
        events.BackedUp("/b/t.dump", 2048, 1.0),
        f"backed up to /b/t.dump ({format_bytes(2048)}) in 1.0 s",
    ),
    (events.TablesRenamed(("t to u",)), "renamed on the monolith\n  t to u"),
    (events.NamesRestored(("t",)), "names given back on the monolith: t"),
    (events.DropDecided("run-1"), None),
    (events.TablesDropped(("t", "u")), "dropped on the monolith: t, u"),
    (events.DropNoted("run-1"), None),
    (events.TraceRemoved("service"), "nothing of ordermigrate is left on the service"),
    (events.Repairing("t", 1_234), "t: 1,234 differing rows are marked to be applied again"),
    (events.RowsQuarantined("t", 1), "t: 1 row was put into quarantine"),
    (events.RowsQuarantined("t", 1_234), "t: 1,234 rows were put into quarantine"),
    (events.CheckFinished("t", "row count", "equal", 1.0), "t: row count: equal (1.0 s)"),
    (events.Locating("t", 3, 1024), "t: 3 of 1024 parts differ; looking for the rows"),
    (CHUNK, None),
    (events.BytesMoved(1), None),
    (events.IndexStarted("t", "i"), None),
    (events.CheckStarted("t", "row count", 5), None),
    (events.RoundBegun(7), None),
    (events.ChangesStaged("t", 3), None),
    (events.ChangesWritten("t", 2, 1), None),
    (events.RoundHalfCommitted(7), None),
    (ROUND, None),
    (events.Quiet(), None),
    (events.SyncWaits("[a] server is away"), None),
]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (5_000 * 2**40, "5000.0 TiB"),
    ],
)
def test_a_size_is_said_in_the_largest_unit_that_fits(count: int, said: str) -> None:
    assert format_bytes(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (119, "119 s"),
        (120, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (3_660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert format_seconds(seconds) == said


@pytest.mark.parametrize(("event", "said"), SAMPLES, ids=lambda it: type(it).__name__)
def test_an_event_is_told_as_a_line(event: events.Event, said: str | None) -> None:
    assert describe_event(event) == said


def test_there_is_a_sample_of_every_event() -> None:
    kinds = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
    }
    assert kinds == {type(event) for event, _ in SAMPLES}


@pytest.mark.parametrize("event", [event for event, _ in SAMPLES], ids=lambda it: type(it).__name__)
def test_both_reporters_take_every_event(
    event: events.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.PlainReporter() as plain:
        plain.report(event)
    assert capsys.readouterr().out == ""  # stdout is for results
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    with console.LiveReporter(screen) as live:
        live.report(event)


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    out = io.StringIO()
    with console.LiveReporter(Console(file=out, width=200)) as live:
        live.report(events.IndexBuilt("[bold]", "[/dim] [x]\\", 1.0, 0))
    assert "[bold]: built [/dim] [x]\\ in 1.0 s" in out.getvalue()


def test_a_meter_starts_from_what_earlier_attempts_have_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = CopyMeter()
    meter.begin(SNAPSHOT)
    assert meter.remaining_seconds is None
    assert meter.describe() == "400 of ~1,000 rows, 3.9 KiB"
    now[0] += 2
    meter.add(CHUNK)
    # 100 rows in 2 s are this attempt's; five chunks are left at 2 s each.
    assert meter.rows_per_second == pytest.approx(50)
    assert meter.remaining_seconds == pytest.approx(10)
    assert meter.describe() == "500 of ~1,000 rows, 4.9 KiB, 50 rows/s, ETA ~10 s"


def test_a_meter_reckons_what_is_under_way_and_takes_it_back_when_an_attempt_ends() -> None:
    meter = CopyMeter()
    meter.begin(SNAPSHOT)
    meter.move(events.BytesMoved(500))
    assert (meter.bytes_under_way, meter.rows_done, meter.chunks_done) == (500, 450, 4.5)
    meter.add(CHUNK)  # its 1,000 bytes are more than what was told of last
    assert (meter.bytes_under_way, meter.rows_done, meter.chunks_done) == (0, 500, 5)
    meter.begin(SNAPSHOT)
    assert (meter.bytes_under_way, meter.rows_done) == (0, 400)


def test_a_meter_of_a_table_that_was_never_analysed_shows_no_estimate() -> None:
    meter = CopyMeter()
    meter.begin(dataclasses.replace(SNAPSHOT, rows_estimate=0))
    assert "~" not in meter.describe()


@given(
    st.lists(
        st.one_of(
            st.builds(events.BytesMoved, st.integers(0, 10**12)),
            st.builds(
                events.ChunkCopied,
                st.just("t"),
                st.just(1),
                st.integers(0, 10**9),
                st.integers(0, 10**12),
            ),
        ),
        max_size=10,
    )
)
def test_a_meters_figures_never_pass_the_whole_nor_go_below_nothing(
    heard: list[events.BytesMoved | events.ChunkCopied],
) -> None:
    meter = CopyMeter()
    meter.begin(events.SnapshotTaken(1, len(heard) + 1, 0, 0, 0, 50))
    for event in heard:
        if isinstance(event, events.BytesMoved):
            meter.move(event)
        else:
            meter.add(event)
        assert 0 <= meter.chunks <= meter.chunks_done <= meter.chunks_total
        assert meter.rows_done >= meter.rows
        left = meter.remaining_seconds
        assert left is None or left >= 0
        assert meter.describe()


def test_plain_lines_sum_up_chunks_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plain = console.PlainReporter()
    plain.report(SNAPSHOT)
    for _ in range(20):
        now[0] += 1
        plain.report(CHUNK)
    lines = capsys.readouterr().err.splitlines()
    copying = [line for line in lines if line.startswith("copying: ")]
    assert 3 <= len(copying) <= 5


SYNC_KEYS = [
    "round",
    "backlog",
    "lag_seconds",
    "rounds_per_second",
    "changes",
    "written",
    "deleted",
    "waits",
]


def test_a_sync_line_has_the_same_keys_whatever_has_happened() -> None:
    meter = SyncMeter()
    heard: list[events.Event] = [event for event, _ in SAMPLES]
    for event in [events.Following("run-1", "monolith"), *heard]:
        meter.take(event)
        assert list(meter.figures()) == SYNC_KEYS
        assert meter.describe().startswith("sync: round=")


def test_a_sync_line_sums_up_rounds_and_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = SyncMeter()
    for number in (7, 8):
        assert not meter.take(dataclasses.replace(ROUND, round=number))
    assert meter.describe() == (
        "sync: round=8 backlog=100 lag_seconds=0.5 rounds_per_second=0.2 changes=10 written=6 "
        "deleted=4 waits=-"
    )
    now[0] += 11  # both rounds are longer ago than the rate looks back
    meter.take(events.Quiet())
    assert meter.figures() | {"round": 0} == {
        "round": 0,
        "backlog": 0,
        "lag_seconds": 0.0,
        "rounds_per_second": 0.0,
        "changes": 10,
        "written": 6,
        "deleted": 4,
        "waits": "idle",
    }


def test_a_sync_line_says_what_sync_waits_for_and_that_it_goes_on() -> None:
    meter = SyncMeter()
    assert meter.take(events.SyncWaits("the server is away"))
    assert not meter.take(events.SyncWaits("the server is away"))
    assert meter.describe().endswith(" waits='the server is away'")
    assert meter.take(events.SyncWaits("again"))
    assert not meter.take(ROUND)
    assert meter.waits == "-"
    meter.take(events.SyncWaits("again"))
    meter.take(events.Following("run-1", "monolith"))
    assert meter.waits == "-"


def test_plain_lines_tell_of_rounds_now_and_then_and_of_a_wait_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plain = console.PlainReporter()
    for _ in range(100):
        now[0] += 0.1
        plain.report(ROUND)
    assert 1 <= len(capsys.readouterr().err.splitlines()) <= 3
    plain.report(events.SyncWaits("why"))
    assert "waits=why" in capsys.readouterr().err
    plain.report(events.SyncWaits("why"))
    assert not capsys.readouterr().err


def test_a_value_shows_the_difference_between_null_empty_and_blank() -> None:
    shown = [console._value(value) for value in (None, "", " ", "NULL", "it's")]
    assert shown == ["NULL", "''", "' '", "'NULL'", "'it''s'"]
