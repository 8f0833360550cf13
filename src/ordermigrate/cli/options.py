"""What commands share: options, the loop that a verb runs in, the document that it prints."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ordermigrate import config as configuration
from ordermigrate import console, logs, streams
from ordermigrate.config import Config
from ordermigrate.phases import NextStep
from ordermigrate.progress import Reporter

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


def log_format(function: _F) -> _F:
    """Add --log-format."""
    return click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        default="console",
        show_default=True,
        envvar="ORDERMIGRATE_LOG_FORMAT",
        help="Progress on stderr for people, or as JSON lines.",
    )(function)


def shared(function: _F) -> _F:
    """Add the options that every command on two databases has."""
    for decorate in (
        click.option("--json", "is_json", is_flag=True, help="Print one JSON document on stdout."),
        log_format,
        click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The configuration file.  [default: $ORDERMIGRATE_CONFIG or ordermigrate.toml]",
        ),
    ):
        function = decorate(function)
    return function


def dry_run(function: _F) -> _F:
    """Add --dry-run."""
    return click.option(
        "--dry-run", "is_dry_run", is_flag=True, help="Say what would be done, and do nothing."
    )(function)


def load_config(path: Path | None, **limits: object) -> Config:
    """Read the configuration, with the flags that stand for limits laid over it."""
    return configuration.load(path, configuration.environment(), **limits)


CANCEL_AGAIN_SECONDS = 3.0


def run_verb(
    command: str,
    log_format: str,
    verb: Callable[[Reporter], Coroutine[Any, Any, _T]],
    *,
    is_quiet: bool = False,
    on_terminate: Callable[[], object] | None = None,
) -> _T:
    """Run a verb to its end in an event loop of its own, telling of its progress on stderr.

    SIGINT and SIGTERM end it cleanly: connections are closed, and the servers undo what was open.
    Where `on_terminate` is given, SIGTERM calls it instead, and the verb ends by itself.
    """
    logs.configure(log_format)
    if log_format == "json":
        return run_to_end(verb(logs.LogReporter(command)), on_terminate)
    with console.PlainReporter() if is_quiet else console.make_reporter() as reporter:
        return run_to_end(verb(reporter), on_terminate)


def run_to_end(
    work: Coroutine[Any, Any, _T], on_terminate: Callable[[], object] | None = None
) -> _T:
    """Run work to its end in an event loop of its own; SIGINT and SIGTERM cancel it.

    Raises:
        KeyboardInterrupt: It was cancelled so.

    """
    if sys.platform == "win32":
        factory = None
    else:
        import uvloop  # noqa: PLC0415  not to be had on Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(streams.ignore_cut_streams)
        return runner.run(_until_terminated(work, on_terminate))


async def _until_terminated(
    work: Coroutine[Any, Any, _T], on_terminate: Callable[[], object] | None
) -> _T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    is_ended = False

    def end() -> None:
        nonlocal is_ended
        is_ended = True
        # One that comes together with what a wait was for may be answered with that, and be lost.
        if not task.done():
            task.cancel()
            loop.call_later(CANCEL_AGAIN_SECONDS, end)

    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGINT, end)
        loop.add_signal_handler(signal.SIGTERM, on_terminate or end)
    try:
        return await task
    except asyncio.CancelledError:
        if is_ended:
            raise KeyboardInterrupt from None
        raise


def make_document(
    command: str,
    outcome: str,
    exit_code: int,
    *,
    run: str | None,
    phase: str | None,
    owner: str | None,
    tables: Sequence[dict[str, Any]],
    steps: Sequence[NextStep],
    **more: object,
) -> dict[str, Any]:
    """Return what `--json` prints: the common keys in their order, then the command's own."""
    return {
        "schema": 1,
        "run": run,
        "command": command,
        "outcome": outcome,
        "exit_code": exit_code,
        "phase": phase,
        "owner": owner,
        "tables": list(tables),
        "next_steps": [{"command": step.command, "reason": step.reason} for step in steps],
        **more,
    }


def print_document(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout, which any encoding of the terminal can carry."""
    has_letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(document, ensure_ascii=not has_letters, indent=2))
