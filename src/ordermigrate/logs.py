"""Logs: the stream of events as structured lines on stderr, by structlog."""

from __future__ import annotations

import logging
import os
import sys
import time

import structlog

from ordermigrate.meters import SyncMeter
from ordermigrate.progress import BytesMoved, Event, Quiet, RoundApplied, SyncWaits

LINE_SECONDS = 10.0
LEVEL_VARIABLE = "ORDERMIGRATE_LOG_LEVEL"


def configure(log_format: str) -> None:
    """Send logs to stderr, as JSON (one object a line) or for people."""
    is_json = log_format == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if is_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if os.environ.get(LEVEL_VARIABLE, "").lower() == "debug" else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


class LogReporter:
    """Writes each event as one log line, named after the event; frequent ones at level debug.

    While sync is at work, a line with the same figures as on a screen comes now and then.
    """

    def __init__(self, command: str) -> None:
        self._log = structlog.get_logger().bind(command=command)
        self._sync = SyncMeter()
        self._said = 0.0

    def report(self, event: Event) -> None:
        """Write it down; of bytes that move, nothing."""
        if isinstance(event, BytesMoved):
            return
        write = self._log.debug if event.is_frequent else self._log.info
        write(event.name(), **dict(event.items()))
        if isinstance(event, RoundApplied | Quiet | SyncWaits):
            self._sync.take(event)
            if time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                self._log.info("sync_status", **self._sync.figures())
