"""Logs: what comes many times a second is for those who ask for it; all else is always there."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ordermigrate import logs
from ordermigrate import progress as events

ROUND = events.RoundApplied(7, 5, 0, 3, 2, 0.5, 0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def write(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *heard: events.Event,
    level: str | None = None,
) -> list[dict[str, Any]]:
    """Return the lines that a fresh reporter writes about events."""
    monkeypatch.delenv(logs.LEVEL_VARIABLE, raising=False)
    if level is not None:
        monkeypatch.setenv(logs.LEVEL_VARIABLE, level)
    capsys.readouterr()
    logs.configure("json")
    reporter = logs.LogReporter("sync")
    for event in heard:
        reporter.report(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.usefixtures("clock")
def test_frequent_events_are_logged_at_level_debug_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = (events.Following("run-1", "monolith"), events.RoundBegun(7), ROUND)
    quiet = write(capsys, monkeypatch, *heard)
    assert [line["event"] for line in quiet] == ["following", "sync_status"]
    assert {line["level"] for line in quiet} == {"info"}
    told = write(capsys, monkeypatch, *heard, level="debug")
    assert [(line["event"], line["level"]) for line in told] == [
        ("following", "info"),
        ("round_begun", "debug"),
        ("round_applied", "debug"),
        ("sync_status", "info"),
    ]
    assert told[2]["written"] == 3


@pytest.mark.usefixtures("clock")
def test_bytes_that_move_are_not_logged_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(capsys, monkeypatch, events.BytesMoved(1), level="DEBUG") == []


def test_a_log_without_debug_says_now_and_then_how_sync_is_doing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.delenv(logs.LEVEL_VARIABLE, raising=False)
    logs.configure("json")
    reporter = logs.LogReporter("sync")
    for _ in range(250):
        clock[0] += 0.1
        reporter.report(ROUND)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["event"] for line in lines} == {"sync_status"}
    assert 2 <= len(lines) <= 3
    assert lines[-1]["command"] == "sync"
    assert lines[-1]["round"] == 7
    assert lines[-1]["changes"] % 5 == 0
    assert lines[-1]["waits"] == "-"


def test_a_level_that_is_none_is_taken_for_the_usual_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(capsys, monkeypatch, events.RoundBegun(7), level="loud") == []
