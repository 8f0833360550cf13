"""The hub_orders family in databases of its own, the program as a subprocess, and the judge.

`identical` compares two tables without a line of the product: it reads both whole, as COPY writes
them under fixed session settings, and compares them as multisets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import psycopg
import pytest
from psycopg import sql

from ordermigrate.logs import LEVEL_VARIABLE
from tests import program
from tests.fix_postgres import MakeDatabase, Side, TestServers

FAMILY = Path(__file__).parent.parent / "sql" / "families" / "hub_orders"
USERS = 200
ORDERS = 5_000
SEED = 1

ORDERS_TABLE: Mapping[str, object] = {
    "name": "public.orders",
    "status": "status",
    "user": "user_id",
    "created": "created_at",
    "updated": "updated_at",
}

_CLI_SECONDS = 100.0
_FIXED_SETTINGS = (
    "SET client_encoding = 'UTF8'; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; "
    "SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; "
    "SET search_path = ''; SET row_security = off"
)


# ------------------------------------------------------------------------------------ the family


@dataclass(frozen=True)
class Hub:
    """A monolith with users and orders, and a service with an empty orders table."""

    monolith: str
    service: str


class MakeHub(Protocol):
    """Make both databases of the hub_orders family for the length of a test."""

    def __call__(self, *, users: int = USERS, orders: int = ORDERS) -> Hub:
        """Clone them; what is cloned is made once a session for each number of rows."""
        ...


class HubTemplates:
    """Databases to clone, made when they are first wanted."""

    def __init__(self, servers: TestServers) -> None:
        self._servers = servers
        self._names: dict[tuple[Side, int, int], str] = {}

    def name(self, side: Side, users: int, orders: int) -> str:
        """Return the name of a database with the family's tables and so many rows."""
        key = (side, users, orders)
        if key not in self._names:
            server = self._servers.of(side)
            name = server.create_database(f"hub_{side}_template")
            server.run((FAMILY / f"{side}.sql").read_text(), name)
            if users:
                add_orders(server.dsn(name), users=users, orders=orders)
                server.run("VACUUM ANALYZE", name)
            self._names[key] = name
        return self._names[key]


def add_orders(
    dsn: str, *, users: int = USERS, orders: int, first: int = 1, total: int | None = None
) -> None:
    """Add the family's generated rows; order number n is the same row every time.

    Args:
        dsn: The monolith's database.
        users: Ids 1 to this; those that are there stay.
        orders: How many to add.
        first: The number of the first one added.
        total: How many there are in the end, when these are not the last.

    """
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        statement = (FAMILY / "generate.sql").read_bytes()
        connection.execute(statement, [users, orders, SEED, first, total])


@pytest.fixture(scope="session")
def hub_templates(postgres_servers: TestServers) -> HubTemplates:
    """The databases that `make_hub` clones."""
    return HubTemplates(postgres_servers)


@pytest.fixture
def make_hub(hub_templates: HubTemplates, make_database: MakeDatabase) -> MakeHub:
    """Return a factory of pairs: a monolith with so many rows, and a service."""

    def make(*, users: int = USERS, orders: int = ORDERS) -> Hub:
        return Hub(
            make_database("monolith", template=hub_templates.name("monolith", users, orders)),
            make_database("service", template=hub_templates.name("service", 0, 0)),
        )

    return make


@pytest.fixture
def hub(make_hub: MakeHub) -> Hub:
    """A monolith with 200 users and 5,000 orders, and its service."""
    return make_hub()


@pytest.fixture
def hub_monolith(hub: Hub) -> str:
    """The DSN of the monolith of `hub`."""
    return hub.monolith


@pytest.fixture
def hub_service(hub: Hub) -> str:
    """The DSN of the service of `hub`."""
    return hub.service


class WriteToml(Protocol):
    """Write an ordermigrate.toml and return its path."""

    def __call__(
        self,
        monolith: str | None = None,
        service: str | None = None,
        *,
        tables: Sequence[Mapping[str, object]] = (ORDERS_TABLE,),
        limits: Mapping[str, object] | None = None,
    ) -> Path:
        """Leave out a DSN that is None; the environment has it then."""
        ...


@pytest.fixture
def ordermigrate_toml(tmp_path: Path) -> WriteToml:
    """Return a writer of tmp_path/ordermigrate.toml, which `run_cli` finds by itself."""

    def write(
        monolith: str | None = None,
        service: str | None = None,
        *,
        tables: Sequence[Mapping[str, object]] = (ORDERS_TABLE,),
        limits: Mapping[str, object] | None = None,
    ) -> Path:
        lines: list[str] = []
        for side, dsn in (("monolith", monolith), ("service", service)):
            if dsn is not None:
                lines += [f"[{side}]", f"dsn = {_toml(dsn)}"]
        for table in tables:
            lines += ["[[tables]]", *(f"{_toml(key)} = {_toml(it)}" for key, it in table.items())]
        if limits:
            lines += ["[limits]", *(f"{_toml(key)} = {_toml(it)}" for key, it in limits.items())]
        path = tmp_path / "ordermigrate.toml"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write


def _toml(value: object) -> str:
    """Write a value as TOML, which takes JSON's strings, numbers and booleans as they are."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml(key)} = {_toml(it)}" for key, it in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(it) for it in value)}]"
    return json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------------- the fence


def execute_behind_fence(dsn: str, statement: str | sql.Composed) -> list[tuple[Any, ...]]:
    """Run statements in one transaction that shows the fence's pass; return the last one's rows.

    This is how a test plants on the service what nobody but the program could have written. Where
    no side is known, or no fence stands, it runs them just the same.
    """
    with psycopg.connect(dsn) as connection:
        ((has_side,),) = connection.execute("SELECT to_regclass('ordermigrate.side') IS NOT NULL")
        if has_side:
            connection.execute(
                "SELECT set_config('ordermigrate.pass', s.pass, true) FROM ordermigrate.side AS s"
            )
        done = connection.execute(
            statement.encode() if isinstance(statement, str) else statement, prepare=False
        )
        while done.nextset():
            pass
        return done.fetchall() if done.description else []


# ------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side; true when they are equal, row for row and byte for byte."""

    monolith_rows: int
    service_rows: int
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether both hold the same rows."""
        return not self.differences

    def __repr__(self) -> str:
        """Show the first differences, for the message of a failed assert."""
        found = "".join(f"\n  {line}" for line in self.differences)
        return f"monolith {self.monolith_rows} rows, service {self.service_rows} rows{found}"


def identical(
    monolith_dsn: str,
    service_dsn: str,
    table: str = "public.orders",
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    service_table: str | None = None,
    show: int = 10,
) -> Comparison:
    """Compare a table on both sides; `assert identical(...)` shows what differs.

    Args:
        monolith_dsn: One side.
        service_dsn: The other.
        table: Its name as one writes it in SQL.
        columns: Names to compare; or the service's names with the monolith's expressions for
            them; all of the monolith's columns when left out.
        service_table: Its name on the service, when that is another.
        show: How many differing rows to show at most.

    """
    if columns is None:
        columns = _columns(monolith_dsn, table)
    if isinstance(columns, Mapping):
        ours = list(columns.values())
        theirs = [_quote(name) for name in columns]
    else:
        ours = theirs = [_quote(name) for name in columns]
    left = _read_rows(monolith_dsn, table, ours)
    right = _read_rows(service_dsn, service_table or table, theirs)
    differences: list[str] = []
    for only, where in ((left - right, "monolith"), (right - left, "service")):
        for line, count in sorted(only.items())[:show]:
            text = line.decode("utf-8", "backslashreplace")
            differences.append(f"only on the {where}, {count} times: {text}")
    return Comparison(left.total(), right.total(), tuple(differences))


def _quote(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _columns(dsn: str, table: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        query = sql.SQL("SELECT * FROM {table} LIMIT 0").format(table=sql.SQL(table))
        return [column.name for column in connection.execute(query).description or ()]


def _read_rows(dsn: str, table: str, expressions: Sequence[str]) -> Counter[bytes]:
    """Count each distinct row of a table, written as one line of COPY's text format."""
    query = sql.SQL("COPY (SELECT {chosen} FROM {table}) TO STDOUT").format(
        chosen=sql.SQL(", ".join(expressions)), table=sql.SQL(table)
    )
    with psycopg.connect(dsn) as connection:
        connection.execute(_FIXED_SETTINGS)
        with connection.cursor().copy(query) as copy:
            written = b"".join(bytes(block) for block in copy)
    return Counter(written.split(b"\n")[:-1])


# ----------------------------------------------------------------------------------- the program


@dataclass(frozen=True)
class CliResult:
    """How a command ended."""

    args: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one document that `--json` printed."""
        return cast("dict[str, Any]", json.loads(self.stdout))

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log lines that `--log-format json` wrote."""
        return [event for line in self.stderr.splitlines() if (event := _read_event(line))]


class RunCli(Protocol):
    """Run one command to its end."""

    def __call__(
        self,
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_seconds: float = _CLI_SECONDS,
    ) -> CliResult:
        """Put the DSNs that are given into the environment; work in tmp_path."""
        ...


class StartCli(Protocol):
    """Start one command and watch its log; it is killed when the test is over."""

    def __call__(
        self,
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        at: tuple[str, int, Callable[[RunningCli], object]] | None = None,
    ) -> RunningCli:
        """At the nth event of a name do something at once: `at=("x", 2, RunningCli.kill)`."""
        ...


@dataclass(eq=False)
class RunningCli:
    """A command that runs, and the events that it has logged so far."""

    args: tuple[str, ...]
    process: program.Command
    at: tuple[str, int, Callable[[RunningCli], object]] | None = None
    _events: list[dict[str, Any]] = field(default_factory=list)
    _stdout: list[str] = field(default_factory=list)
    _stderr: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_silent: bool = False

    def __post_init__(self) -> None:
        self._readers = [
            threading.Thread(target=self._read_stdout, args=(self.process.stdout,)),
            threading.Thread(target=self._read_stderr, args=(self.process.stderr,)),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What has been logged so far."""
        with self._changed:
            return list(self._events)

    def wait_for_event(
        self, name: str, nth: int = 1, *, timeout_seconds: float = 60.0
    ) -> dict[str, Any]:
        """Wait until the nth event of a name has been logged, and return it.

        Raises:
            AssertionError: The command ended without it, or the time is over.

        """

        def seen() -> list[dict[str, Any]]:
            return [event for event in self._events if event.get("event") == name]

        with self._changed:
            self._changed.wait_for(lambda: len(seen()) >= nth or self._is_silent, timeout_seconds)
            found = seen()
        if len(found) < nth:
            said = "".join(self._stderr[-20:])
            raise AssertionError(f"{len(found)} of {nth} events {name}; it said:\n{said}")
        return found[nth - 1]

    def kill(self) -> None:
        """End it at once with SIGKILL."""
        self.process.kill()

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def finish(self, *, timeout_seconds: float = _CLI_SECONDS) -> CliResult:
        """Wait for its end; the exit code is negative (a signal's number) if it was killed."""
        deadline = time.monotonic() + timeout_seconds
        try:
            exit_code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            self._join()
            said = "".join(self._stderr[-40:])
            raise AssertionError(
                f"{' '.join(self.args)} still ran after {timeout_seconds:g} s; it said:\n{said}"
            ) from None
        self._join(max(1.0, deadline - time.monotonic()))
        return CliResult(self.args, exit_code, "".join(self._stdout), "".join(self._stderr))

    def _join(self, timeout_seconds: float = 5.0) -> None:
        for reader in self._readers:
            reader.join(timeout_seconds)

    def _read_stdout(self, stream: IO[str]) -> None:
        with stream:
            self._stdout.extend(stream)

    def _read_stderr(self, stream: IO[str]) -> None:
        count = 0
        with stream:
            for line in stream:
                event = _read_event(line)
                with self._changed:
                    self._stderr.append(line)
                    if event:
                        self._events.append(event)
                    self._changed.notify_all()
                if self.at and event and event.get("event") == self.at[0]:
                    count += 1
                    if count == self.at[1]:
                        self.at[2](self)
        with self._changed:
            self._is_silent = True
            self._changed.notify_all()


def _read_event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        return cast("dict[str, Any]", json.loads(line))
    except json.JSONDecodeError:
        return None


def cli_environment(
    monolith: str | None, service: str | None, env: Mapping[str, str] | None
) -> dict[str, str]:
    """Return an environment in which nothing of the tester's own configuration is left."""
    found = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ORDERMIGRATE_", "PG"))
    }
    found |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    if monolith is not None:
        found["ORDERMIGRATE_MONOLITH_DSN"] = monolith
    if service is not None:
        found["ORDERMIGRATE_SERVICE_DSN"] = service
    return found | dict(env or {})


@pytest.fixture
def start_cli(tmp_path: Path) -> Iterator[StartCli]:
    """Return a starter of commands that log their events as JSON, the frequent ones too."""
    started: list[RunningCli] = []

    def start(
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        at: tuple[str, int, Callable[[RunningCli], object]] | None = None,
    ) -> RunningCli:
        variables = cli_environment(monolith, service, {LEVEL_VARIABLE: "debug"} | dict(env or {}))
        process = program.start((*args, "--log-format", "json"), variables, cwd or tmp_path)
        started.append(RunningCli(args, process, at))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        one.finish()


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Return a runner of commands."""

    def run(
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_seconds: float = _CLI_SECONDS,
    ) -> CliResult:
        variables = cli_environment(monolith, service, env)
        process = program.start(args, variables, cwd or tmp_path)
        return RunningCli(args, process).finish(timeout_seconds=timeout_seconds)

    return run
