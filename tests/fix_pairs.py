"""Pairs of databases with tables of any shape, the program in this process, and pictures of both.

`Pair.run` calls the command line as `ordermigrate` would be called, without a new interpreter: the
acceptance tests have real processes, the many small cases have this. `picture` tells everything
that a command could have changed in a database, so that a test can say that nothing was.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ordermigrate.cli.app import run
from tests.fix_orders import (
    CliResult,
    Comparison,
    Hub,
    WriteToml,
    cli_environment,
    execute_behind_fence,
    identical,
)
from tests.fix_postgres import SIDES, MakeDatabase, Side, TestServers, execute

THING: Mapping[str, object] = {"name": "public.thing"}
_PICTURE = r"""
SELECT line FROM (
    SELECT format('schema %I owner %s %s', nspname, nspowner::regrole, nspacl)
    FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast)'
    UNION ALL
    SELECT format('relation %s %s file %s owner %s %s %s %s', c.oid::regclass, c.relkind,
        c.relfilenode, c.relowner::regrole, c.relacl, c.relreplident, c.reloptions)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    UNION ALL
    SELECT format('column %s %I %s %s %s', a.attrelid::regclass, a.attname,
        format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        AND c.relkind IN ('r', 'p', 'v', 'f')
    UNION ALL
    SELECT format('index %s valid %s identity %s clustered %s in %s: %s',
        pg_get_indexdef(indexrelid), indisvalid, indisreplident, indisclustered,
        (SELECT spcname FROM pg_tablespace t WHERE t.oid = c.reltablespace),
        obj_description(indexrelid, 'pg_class'))
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'pg_toast')
    UNION ALL
    SELECT format('constraint %I on %s %s %s: %s', conname, conrelid::regclass,
        pg_get_constraintdef(k.oid), conindid::regclass, obj_description(k.oid, 'pg_constraint'))
    FROM pg_constraint k WHERE conrelid <> 0
    UNION ALL
    SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(oid))
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT format('function %s %s', p.oid::regprocedure, md5(prosrc))
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL
    SELECT format('rows %s %s', c.oid::regclass, query_to_xml(format(
        'SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY t::text COLLATE "C")) '
        'FROM ONLY %s t',
        c.oid::regclass), true, false, ''))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL
    SELECT format('setting %s', setconfig) FROM pg_db_role_setting
) AS everything (line)
ORDER BY line COLLATE "C"
"""


def picture(dsn: str) -> list[str]:
    """Return every object of a database with its definition, its file and its rows, as lines."""
    # Without a search path every name is told with its schema.
    return [line for (line,) in execute(make_conninfo(dsn, options="-c search_path="), _PICTURE)]


def definitions(dsn: str) -> list[str]:
    """Return the picture's lines about what a copy takes off and has to bring back.

    Files and rows, which a copy changes, are not among them, nor are triggers, which stay off.
    """
    with psycopg.connect(dsn) as connection:
        identities = connection.execute(
            "SELECT format('identity of %s.%s: %s', nspname, relname, relreplident) FROM pg_class "
            "JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'p') "
            "AND nspname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
    found = [line for line in picture(dsn) if line.startswith(("index ", "constraint ", "column "))]
    return sorted(
        line for line in [*found, *(line for (line,) in identities)] if "ordermigrate." not in line
    )


@dataclass(frozen=True)
class Pair:
    """Two databases, the tables that are to move, and the command line pointed at both.

    The test looks at them as the superuser; the program does by its own two DSNs, where given.
    """

    monolith: str
    service: str
    run_here: RunHere
    write_toml: WriteToml
    tables: Sequence[Mapping[str, object]] = (THING,)
    limits: Mapping[str, object] = field(default_factory=dict)
    monolith_dsn: str | None = None
    service_dsn: str | None = None
    # What was returned by what brought it to where it is.
    kept: Any = None

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> CliResult:
        """Run a command of the program on both databases."""
        self.write_toml(tables=self.tables, limits=self.limits)
        return self.run_here(
            *args,
            monolith=self.monolith_dsn or self.monolith,
            service=self.service_dsn or self.service,
            env=env,
        )

    def on_monolith(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements there as the superuser."""
        return execute(self.monolith, statement)

    def on_service(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements there as the superuser."""
        return execute(self.service, statement)

    def plant(self, statement: str) -> None:
        """Run statements on the service as the superuser, past the fence."""
        execute_behind_fence(self.service, statement)

    def behind_fence(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements on the service as nobody but the program could."""
        return execute_behind_fence(self.service, statement)

    def on_both(self, statement: str) -> None:
        """Run statements on both sides as the superuser."""
        execute(self.monolith, statement)
        execute(self.service, statement)

    def pictures(self) -> tuple[list[str], list[str]]:
        """Return what both databases look like."""
        return picture(self.monolith), picture(self.service)

    def but(self, **changes: Any) -> Pair:  # noqa: ANN401  the fields' own types
        """Return the pair with another DSN, other tables or other limits."""
        return replace(self, **changes)

    def as_role(self, role: str, *, monolith: bool = True, service: bool = True) -> Pair:
        """Let the program connect as this role, to one side or both."""
        return self.but(
            monolith_dsn=role_dsn(self.monolith, role) if monolith else self.monolith_dsn,
            service_dsn=role_dsn(self.service, role) if service else self.service_dsn,
        )

    def copy(self, *args: str) -> CliResult:
        """Copy, which has to succeed."""
        done = self.run("copy", *args)
        assert done.exit_code == 0, done.stderr
        return done

    def sync(self) -> CliResult:
        """Bring what has been written since the copy."""
        done = self.run("sync", "--until-caught-up", "--json")
        assert done.exit_code == 0, done.stderr
        assert done.json["outcome"] == "caught_up"
        return done

    def validate(self, *args: str) -> CliResult:
        """Validate every row; both sides have to be equal."""
        done = self.run("validate", "--checksums", "--json", *args)
        assert done.exit_code == 0, done.stderr + done.stdout
        assert done.json["outcome"] == "equal"
        return done

    def move(self) -> None:
        """Copy and validate, and let the judge have its say on every table that is not mapped."""
        self.copy()
        self.validate()
        for table in self.tables:
            if "columns" not in table and "where" not in table:
                assert self.compare(table)

    def compare(self, table: Mapping[str, object] = THING) -> Comparison:
        """Compare a table by the judge."""
        name = str(table["name"])
        return identical(
            self.monolith, self.service, name, service_table=str(table.get("to", name))
        )

    def refuse(self, *args: str, exit_code: int, says: Sequence[str]) -> CliResult:
        """Run a command that has to be refused with one clear message and without any change."""
        before = self.pictures()
        done = self.run(*args)
        assert_refused(done, exit_code, says)
        assert self.pictures() == before
        return done


def assert_refused(done: CliResult, exit_code: int, says: Sequence[str]) -> None:
    """Assert that a command ended with one message that says all this, and no traceback."""
    assert done.exit_code == exit_code, (done.exit_code, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr, done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith("ordermigrate: ")]
    assert len(message) == 1, done.stderr
    missing = [part for part in says if part not in message[0]]
    assert not missing, f"{missing} not in {message[0]!r}"


class MakePair(Protocol):
    """Make two databases for the length of a test."""

    def __call__(
        self,
        monolith: str,
        service: str | None = None,
        *,
        tables: Sequence[Mapping[str, object]] = (THING,),
        limits: Mapping[str, object] | None = None,
        options: tuple[str, str] = ("", ""),
        brought_by: Callable[[Pair], object] | None = None,
    ) -> Pair:
        """Run a script in each, the same in both where there is one only.

        With `brought_by` it is done to the first such pair only, and every test gets a clone.
        """
        ...


class Dsns(TypedDict):
    """Both DSNs, as runners of the program take them."""

    monolith: str
    service: str


def dsns(hub: Hub) -> Dsns:
    """Return both DSNs of a hub, for `run(**dsns(hub))`."""
    return {"monolith": hub.monolith, "service": hub.service}


class RunHere(Protocol):
    """Run one command in this process."""

    def __call__(
        self,
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> CliResult:
        """Put the DSNs that are given into the environment; work in tmp_path."""
        ...


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunHere:
    """Return a runner of commands that wastes no time on a new interpreter."""

    def run_command(
        *args: str,
        monolith: str | None = None,
        service: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> CliResult:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            wanted = cli_environment(monolith, service, env)
            for name in os.environ.keys() - wanted.keys():
                patch.delenv(name)
            for name, value in wanted.items():
                patch.setenv(name, value)
            shown = logging.StreamHandler(sys.stderr)  # as without pytest, which takes them away
            logging.getLogger("asyncio").addHandler(shown)
            try:
                exit_code = run(list(args))
            finally:
                logging.getLogger("asyncio").removeHandler(shown)
        captured = capsys.readouterr()
        return CliResult(args, exit_code, captured.out, captured.err)

    return run_command


# A clone is another database than the one that the ledger knows, and as fresh as the test.
_ADOPT = """
UPDATE ordermigrate.run SET
    monolith = monolith || jsonb_build_object('database', {m}, 'database_oid', {m_oid}),
    service = service || jsonb_build_object('database', {s}, 'database_oid', {s_oid});
UPDATE ordermigrate.validation SET finished_at = clock_timestamp()
"""


class PairTemplates:
    """Pairs that were brought to where tests begin, to be cloned."""

    def __init__(self, servers: TestServers) -> None:
        self.servers = servers
        self._made: dict[str, tuple[dict[Side, str], object]] = {}

    def find(
        self, key: str, bring: Callable[[dict[Side, str]], object]
    ) -> tuple[dict[Side, str], object]:
        """Return two databases' names and what was kept, made by `bring` when first wanted."""
        if key not in self._made:
            names = {side: self.servers.of(side).create_database(f"{side}_kept") for side in SIDES}
            self._made[key] = (names, bring(names))
        return self._made[key]


@pytest.fixture(scope="session")
def pair_templates(postgres_servers: TestServers) -> PairTemplates:
    """The pairs that `make_pair` clones."""
    return PairTemplates(postgres_servers)


def _adopt(monolith: str, service: str) -> None:
    found: dict[str, sql.Literal] = {}
    for name, dsn in (("m", monolith), ("s", service)):
        ((database, oid),) = execute(
            dsn, "SELECT datname, oid::bigint FROM pg_database WHERE datname = current_database()"
        )
        found |= {name: sql.Literal(database), f"{name}_oid": sql.Literal(oid)}
    execute(service, sql.SQL(_ADOPT).format(**found).as_string(None))


@pytest.fixture
def make_pair(
    make_role: MakeRole,
    make_tablespace: MakeTablespace,
    make_database: MakeDatabase,
    pair_templates: PairTemplates,
    run_here: RunHere,
    ordermigrate_toml: WriteToml,
) -> MakePair:
    """Return a factory of pairs."""

    def make(
        monolith: str,
        service: str | None = None,
        *,
        tables: Sequence[Mapping[str, object]] = (THING,),
        limits: Mapping[str, object] | None = None,
        options: tuple[str, str] = ("", ""),
        brought_by: Callable[[Pair], object] | None = None,
    ) -> Pair:
        scripts: dict[Side, str] = {
            "monolith": monolith,
            "service": monolith if service is None else service,
        }

        def pair(dsns: dict[Side, str], kept: object = None) -> Pair:
            return Pair(
                dsns["monolith"],
                dsns["service"],
                run_here,
                ordermigrate_toml,
                tables,
                limits or {},
                kept=kept,
            )

        if brought_by is None:
            return pair(
                {
                    side: make_database(side, script=scripts[side], options=more)
                    for side, more in zip(SIDES, options, strict=True)
                }
            )

        def bring(names: dict[Side, str]) -> object:
            servers = {side: pair_templates.servers.of(side) for side in SIDES}
            for side, server in servers.items():
                server.run(scripts[side], names[side])
            return brought_by(pair({side: servers[side].dsn(names[side]) for side in SIDES}))

        key = repr((scripts, tables, limits, brought_by.__module__, brought_by.__qualname__))
        names, kept = pair_templates.find(key, bring)
        cloned = pair({side: make_database(side, template=names[side]) for side in SIDES}, kept)
        _adopt(cloned.monolith, cloned.service)
        return cloned

    return make


class MakeRole(Protocol):
    """Make a role on both servers for the length of a test, and return its name."""

    def __call__(self, what: str = "role", options: str = "", *, password: str = "") -> str:
        """Let it log in; its password is PASSWORD where none is given."""
        ...


PASSWORD = "swordfish-4711"


def role_dsn(dsn: str, role: str, password: str = PASSWORD) -> str:
    """Return the same DSN for another role."""
    return make_conninfo(dsn, user=role, password=password)


@pytest.fixture
def make_role(postgres_servers: TestServers) -> Iterator[MakeRole]:
    """Return a factory of roles; to be asked for before databases, as it has to go after them."""
    one, other = postgres_servers.monolith, postgres_servers.service
    distinct = [one] if (one.host, one.port) == (other.host, other.port) else [one, other]
    made: list[str] = []

    def make(what: str = "role", options: str = "", *, password: str = "") -> str:
        name = f"om_{what}_{os.getpid()}_{secrets.token_hex(3)}"
        made.append(name)
        for server in distinct:
            server.run(
                sql.SQL("CREATE ROLE {name} LOGIN PASSWORD {password} {options}").format(
                    name=sql.Identifier(name),
                    password=sql.Literal(password or PASSWORD),
                    options=sql.SQL(options),
                )
            )
        return name

    yield make
    for name in reversed(made):
        for server in distinct:
            server.run(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


class MakeTablespace(Protocol):
    """Make a tablespace on the service's server for the length of a test."""

    def __call__(self) -> str:
        """Return its name."""
        ...


@pytest.fixture
def make_tablespace(postgres_servers: TestServers) -> Iterator[MakeTablespace]:
    """Return a factory of tablespaces; to be asked for before databases.

    Where the server's data lies on another machine, the test is skipped.
    """
    server = postgres_servers.service
    made: list[str] = []

    def make() -> str:
        if server.own is None:
            pytest.skip("needs a server whose files are within reach")
        name = f"om_space_{os.getpid()}_{secrets.token_hex(3)}"
        data = server.own.data_dir
        folder = data.parent / name
        folder.mkdir(mode=0o700)
        owner = data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        server.run(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
        made.append(name)
        return name

    yield make
    for name in made:
        server.run(f"DROP TABLESPACE {name}")
