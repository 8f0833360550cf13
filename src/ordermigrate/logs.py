"""Logs: the stream of events as structured lines on stderr, by structlog."""

from __future__ import annotations

import logging
import sys

import structlog

from ordermigrate.progress import BytesMoved, Event


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
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


class LogReporter:
    """Writes each event as one log line, named after the event."""

    def __init__(self, command: str) -> None:
        self._log = structlog.get_logger().bind(command=command)

    def report(self, event: Event) -> None:
        """Write it down; a mere sign of life is not worth a line."""
        if isinstance(event, BytesMoved):
            return
        self._log.info(event.name(), **dict(event.items()))
