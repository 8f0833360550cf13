"""Two real PostgreSQL servers for a test session, and databases of its own for each test.

The servers are those that ORDERMIGRATE_TEST_MONOLITH_DSN and ORDERMIGRATE_TEST_SERVICE_DSN name
(both or none, superusers), else our own: of the versions that ORDERMIGRATE_TEST_MONOLITH_VERSION
and ORDERMIGRATE_TEST_SERVICE_VERSION name (both or none), or from an installed PostgreSQL or from
the wheel; else two containers when a Docker daemon answers. Ours keep their data in memory where
there is plenty of it (ORDERMIGRATE_TEST_DATA_DIR names another place): files outlive a killed
server there too. Every database has a name that no other session, worker or test uses, so several
runs share two given servers without seeing each other.
"""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ordermigrate.demo import servers
from ordermigrate.demo.binaries import Binaries
from ordermigrate.demo.data_directory import Setting
from ordermigrate.errors import OrdermigrateError, Unavailable
from tests.versions import VERSION_VARIABLES, find_chosen

Side = Literal["monolith", "service"]
SIDES: tuple[Side, ...] = ("monolith", "service")
VARIABLES: Mapping[Side, str] = {
    "monolith": "ORDERMIGRATE_TEST_MONOLITH_DSN",
    "service": "ORDERMIGRATE_TEST_SERVICE_DSN",
}
DATA_VARIABLE = "ORDERMIGRATE_TEST_DATA_DIR"
ENOUGH_MEMORY_BYTES = 4 * 1024**3
# Crash recovery is part of what is tested, so fsync stays on; the rest is for many small databases.
TEST_SETTINGS: Mapping[str, Setting] = {
    "max_connections": 200,
    "max_prepared_transactions": 20,
    "max_replication_slots": 20,
    "max_wal_senders": 20,
    "shared_buffers": "64MB",
}


@dataclass(eq=False)
class TestServer:
    """One of the servers that tests run against.

    Attributes:
        parameters: How to reach it as a superuser, in libpq's words, without the database.
        own: The server as a process of ours; None when it was given to us.

    """

    __test__ = False

    side: str
    parameters: Mapping[str, str]
    own: servers.Server | None = None
    _databases: list[str] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        """Whether the server may be stopped, killed and restarted (by its `own`)."""
        return self.own is not None

    @property
    def host(self) -> str:
        """Its address."""
        return self.parameters.get("host", "127.0.0.1")

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.parameters.get("port", "5432"))

    def dsn(
        self, dbname: str = "postgres", *, user: str | None = None, password: str | None = None
    ) -> str:
        """Return a libpq URI; the superuser's, unless another role is named."""
        rest = dict(self.parameters)
        if user is not None:
            rest["user"] = user
            rest.pop("password", None)
        if password is not None:
            rest["password"] = password
        login = quote(rest.pop("user", ""), safe="")
        if secret := rest.pop("password", ""):
            login += f":{quote(secret, safe='')}"
        netloc = f"{login}@" if login else ""
        if not rest.get("host", "").startswith("/"):
            netloc += f"{rest.pop('host', '127.0.0.1')}:{rest.pop('port', '5432')}"
        options = "&".join(f"{key}={quote(value, safe='')}" for key, value in rest.items())
        uri = f"postgresql://{netloc}/{quote(dbname, safe='')}"
        return f"{uri}?{options}" if options else uri

    def run(self, statement: str | sql.Composed, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as the superuser and return the rows of the last one."""
        return execute(self.dsn(dbname), statement)

    def create_database(
        self, prefix: str = "test", *, template: str | None = None, options: str = ""
    ) -> str:
        """Make a database, empty or a clone, and return its name.

        Args:
            prefix: What its name begins with, for people who look at the server.
            template: The name of the database to clone.
            options: More of CREATE DATABASE, such as "ENCODING 'LATIN1' LOCALE 'C'".

        """
        name = f"om_{prefix}_{_SESSION}_{next(_NUMBERS)}"
        self.run(
            sql.SQL("CREATE DATABASE {name} TEMPLATE {template} {options}").format(
                name=sql.Identifier(name),
                template=sql.Identifier(template or "template0"),
                options=sql.SQL(options),
            )
        )
        self._databases.append(name)
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database that we made, whoever is connected."""
        if self.own is not None:
            self.own.start()  # a test may have killed it
        drop = sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.run(drop.format(name=sql.Identifier(name)))
        self._databases.remove(name)

    def drop_databases(self) -> None:
        """Drop what is left of the databases that we made."""
        for name in reversed(list(self._databases)):
            self.drop_database(name)


# Process id and chance together: unique among xdist's workers and between machines.
_SESSION = f"{os.getpid()}_{secrets.token_hex(3)}"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class TestServers:
    """Both of them."""

    __test__ = False

    monolith: TestServer
    service: TestServer

    def of(self, side: Side) -> TestServer:
        """Return one side's."""
        return self.monolith if side == "monolith" else self.service


class MakeDatabase(Protocol):
    """Make a database on one side for the length of a test, and return its DSN."""

    def __call__(
        self, side: Side, *, template: str | None = None, script: str = "", options: str = ""
    ) -> str:
        """Clone `template` or make an empty one, run `script` in it."""
        ...


class StartServer(Protocol):
    """Start one more server for the length of a test."""

    def __call__(
        self,
        *,
        encoding: str = "UTF8",
        locale: str = "C",
        settings: Mapping[str, Setting] | None = None,
    ) -> servers.Server:
        """Skip the test, with the reason, where no server of our own can be started."""
        ...


def execute(dsn: str, statement: str | sql.Composed) -> list[tuple[Any, ...]]:
    """Run statements, outside any transaction of ours, and return the rows of the last one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        done = connection.execute(
            statement.encode() if isinstance(statement, str) else statement, prepare=False
        )
        while done.nextset():
            pass
        return done.fetchall() if done.description else []


def _given_servers() -> TestServers | None:
    """Return the servers that the environment names, or None."""
    named = {side: os.environ.get(VARIABLES[side], "") for side in SIDES}
    if not any(named.values()):
        return None
    if not all(named.values()):
        pytest.exit(f"Set both {' and '.join(VARIABLES.values())}, or neither", returncode=2)
    found = {}
    for side, dsn in named.items():
        try:
            with psycopg.connect(dsn, connect_timeout=10) as connection:
                is_superuser = connection.info.parameter_status("is_superuser")
        except psycopg.OperationalError as error:
            pytest.exit(f"{VARIABLES[side]}: {error}", returncode=2)
        if is_superuser != "on":
            pytest.exit(f"{VARIABLES[side]} has to name a superuser", returncode=2)
        parameters = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
        parameters.pop("dbname", None)
        found[side] = TestServer(side, parameters)
    return TestServers(**found)


def _chosen_binaries() -> dict[Side, Binaries] | None:
    """Return the programs of the versions that the environment names, or None."""
    try:
        found = {side: chosen for side in SIDES if (chosen := find_chosen(side)) is not None}
    except OrdermigrateError as error:
        pytest.exit(str(error), returncode=2)
    if found and len(found) < len(SIDES):
        both = " and ".join(VERSION_VARIABLES.values())
        pytest.exit(f"Set both {both}, or neither", returncode=2)
    return found or None


def data_parent() -> Path | None:
    """Return where our servers keep their data; None for the usual place."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    memory = Path("/dev/shm")  # noqa: S108  mkdtemp makes a name there
    try:
        found = os.statvfs(memory)
    except OSError:
        return None
    # A container's is 64 MB as a rule, and PostgreSQL's parallel workers want some of it.
    has_plenty = found.f_bavail * found.f_frsize >= ENOUGH_MEMORY_BYTES
    return memory if has_plenty and os.access(memory, os.W_OK) else None


def _own_server(server: servers.Server) -> TestServer:
    parameters = {
        "host": server.host,
        "port": str(server.port),
        "user": server.user,
        "password": server.password,
    }
    return TestServer(server.name, parameters, server)


def _ask_docker() -> str:
    """Return why no Docker daemon can be used; an empty string when one answers."""
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def _container(side: Side, stack: ExitStack) -> TestServer:
    """Start a server in Docker."""
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415  the last resort

    options = " ".join(f"-c {key}={value}" for key, value in TEST_SETTINGS.items())
    container = PostgresContainer("postgres:17", driver=None).with_command(
        f"postgres -c wal_level=logical {options}"
    )
    stack.enter_context(container)
    parameters = conninfo_to_dict(container.get_connection_url())
    parameters.pop("dbname", None)
    return TestServer(side, {key: str(value) for key, value in parameters.items()})


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[TestServers]:
    """Both servers; without any PostgreSQL the run fails and says what was tried."""
    with ExitStack() as stack:
        both = _given_servers()
        if both is None:
            chosen = _chosen_binaries()
            try:
                two = stack.enter_context(
                    servers.two_servers(
                        binaries=chosen["monolith"] if chosen else None,
                        service_binaries=chosen["service"] if chosen else None,
                        settings=TEST_SETTINGS,
                        parent=data_parent(),
                    )
                )
                both = TestServers(_own_server(two.monolith), _own_server(two.service))
            except Unavailable as error:
                if said := _ask_docker():
                    pytest.fail(
                        f"No PostgreSQL to test with. {error} Docker: {said}", pytrace=False
                    )
                both = TestServers(_container("monolith", stack), _container("service", stack))
        yield both
        for side in SIDES:
            server = both.of(side)
            if not server.is_ours:
                server.drop_databases()


@pytest.fixture(scope="session")
def monolith_server(postgres_servers: TestServers) -> TestServer:
    """The server with the monolith's databases."""
    return postgres_servers.monolith


@pytest.fixture(scope="session")
def service_server(postgres_servers: TestServers) -> TestServer:
    """The server with the service's databases."""
    return postgres_servers.service


@pytest.fixture
def make_database(postgres_servers: TestServers) -> Iterator[MakeDatabase]:
    """Return a factory of databases that go when the test is over."""
    made: list[tuple[TestServer, str]] = []

    def make(
        side: Side, *, template: str | None = None, script: str = "", options: str = ""
    ) -> str:
        server = postgres_servers.of(side)
        name = server.create_database(side, template=template, options=options)
        made.append((server, name))
        if script:
            server.run(script, name)
        return server.dsn(name)

    yield make
    for server, name in reversed(made):
        server.drop_database(name)


@pytest.fixture
def monolith_dsn(make_database: MakeDatabase) -> str:
    """Name an empty database on the monolith's server, for this test alone."""
    return make_database("monolith")


@pytest.fixture
def service_dsn(make_database: MakeDatabase) -> str:
    """Name an empty database on the service's server, for this test alone."""
    return make_database("service")


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Return a factory of servers that may be killed and configured at will."""
    with ExitStack() as stack:

        def start(
            *,
            encoding: str = "UTF8",
            locale: str = "C",
            settings: Mapping[str, Setting] | None = None,
        ) -> servers.Server:
            try:
                server = servers.Server(
                    "extra",
                    settings={**TEST_SETTINGS, **(settings or {})},
                    encoding=encoding,
                    locale=locale,
                    parent=data_parent(),
                )
            except Unavailable as error:
                pytest.skip(f"needs a server of its own: {error}")
            stack.callback(server.close)
            return server.start()

        yield start
