"""A small table that has been moved and is followed, for tests of what may happen to it then."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.fix_orders import CliResult, RunningCli, StartCli
from tests.fix_pairs import Dsns, Pair, assert_refused

TABLE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, number integer)"
ROWS = (
    f"{TABLE}; INSERT INTO public.thing "
    "SELECT n, 'word ' || n, n * 10 FROM generate_series(1, 50) n"
)
PARTITIONED = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, word text) PARTITION BY RANGE (id);"
    "CREATE TABLE public.low PARTITION OF public.thing FOR VALUES FROM (0) TO (100);"
    "CREATE TABLE public.high PARTITION OF public.thing FOR VALUES FROM (100) TO (200);"
    "INSERT INTO public.thing SELECT n, 'word ' || n FROM generate_series(1, 199) n"
)
WRITE = "UPDATE public.thing SET word = word || '!' WHERE id % 5 = 0"


def succeed(pair: Pair, *args: str) -> CliResult:
    """Run a command that has to end with 0."""
    done = pair.run(*args)
    assert done.exit_code == 0, (args, done.exit_code, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def catch_up(pair: Pair, *args: str) -> CliResult:
    """Sync until nothing is waiting."""
    return succeed(pair, "sync", "--until-caught-up", *args)


def bring_up(pair: Pair) -> Pair:
    """Prepare, copy, sync and prove."""
    for command in ("prepare", "copy"):
        succeed(pair, command)
    catch_up(pair)
    pair.validate()
    assert find_void(pair) is None
    return pair


def show_status(pair: Pair) -> dict[str, Any]:
    """Return what `status --json` says."""
    return succeed(pair, "status", "--json").json


def find_void(pair: Pair) -> str | None:
    """Return why the last validation is void; None where it is not."""
    found = show_status(pair)["last_validation"]
    assert found is not None
    assert found["is_void"] == (found["void_because"] is not None)
    return str(found["void_because"]) if found["is_void"] else None


def require_end(pair: Pair) -> None:
    """Walk to a validated end: what was written arrives, the judge and `validate` agree."""
    pair.on_monolith("UPDATE public.thing SET word = 'last' WHERE id = 5")
    catch_up(pair)
    assert all(pair.compare(table) for table in pair.tables if "columns" not in table)
    pair.validate()
    found = show_status(pair)
    assert (found["backlog"], found["capture_gaps"]) == (0, [])
    assert found["last_validation"]["verdict"] == "equal"
    assert not found["last_validation"]["is_void"]


def refuse_sync(pair: Pair, *says: str, exit_code: int = 3) -> CliResult:
    """Sync is refused in one message; nothing on either side is changed, what waits stays.

    What the ledger notes of having looked at the tables is no change of theirs.
    """
    before = _without_notes(pair)
    done = pair.run("sync", "--until-caught-up")
    assert_refused(done, exit_code, says)
    assert _without_notes(pair) == before
    return done


def _without_notes(pair: Pair) -> list[list[str]]:
    return [
        [line for line in each if not line.startswith("rows ordermigrate.structure ")]
        for each in pair.pictures()
    ]


def ends(pair: Pair) -> Dsns:
    """Return the program's two DSNs, for a command in a process of its own."""
    return {
        "monolith": pair.monolith_dsn or pair.monolith,
        "service": pair.service_dsn or pair.service,
    }


@contextmanager
def syncing(pair: Pair, start_cli: StartCli, *args: str) -> Iterator[RunningCli]:
    """Have a sync follow the monolith in a process of its own; it has to be ended by the test."""
    pair.write_toml(tables=pair.tables, limits=pair.limits)
    running = start_cli("sync", *args, **ends(pair))
    running.wait_for_event("following")
    yield running


def require_stopped(running: RunningCli, says: Sequence[str], exit_code: int = 3) -> CliResult:
    """The command ends by itself with one message."""
    done = running.finish(timeout_seconds=30)
    assert_refused(done, exit_code, says)
    return done


def end_sync(running: RunningCli) -> CliResult:
    """End a sync as a service manager would."""
    running.process.terminate()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    return done
