"""Two real servers, the sources that are read, and the targets that are made anew.

The sources: the hub's whole monolith at two sizes, and a physical copy of the larger one with
orders alone (no users, no foreign key), for peers that move whole databases: so all move the same
rows and build the same seven indexes. Settings that are not PostgreSQL's own defaults are in
SETTINGS, the same for every contestant, and part of the result.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from benchmarks import programs
from benchmarks.measure import WrongResult, tell, tree_cpu_seconds
from benchmarks.programs import Command, Ended, Pipeline, Running, Usage
from ordermigrate.demo.binaries import find_binaries
from ordermigrate.demo.data_directory import Setting
from ordermigrate.demo.servers import Server

FAMILY: Final = Path(__file__).parents[1] / "sql" / "families" / "hub_orders"
SETTINGS: Final[Mapping[str, Setting]] = {
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",  # no checkpoint in the middle of a measured run
    "autovacuum": "off",  # nor a vacuum
}
USERS: Final = 1000
INDEXES: Final = 7
SMALLER: Final = 10

SOURCE: Final = "hub_investments"
SMALL_SOURCE: Final = "hub_investments_small"
ALONE_SOURCE: Final = "hub_orders_alone"
TARGET: Final = "hub_order_service"

_FILL: LiteralString = "SELECT count(*) FROM public.orders"
# Any difference in any column shows; a hash that ordermigrate does not use (its text form).
_WITNESS: LiteralString = """
SELECT count(*), sum(hashtextextended(orders::text, 0)) FROM public.orders AS orders
"""
_READY_INDEXES: LiteralString = """
SELECT count(*) FROM pg_index WHERE indrelid = 'public.orders'::regclass AND indisvalid
"""
_HAS_STATISTICS: LiteralString = """
SELECT count(*) FROM pg_statistic WHERE starelid = 'public.orders'::regclass
"""
_COLUMNS: LiteralString = """
SELECT attname FROM pg_attribute
WHERE attrelid = 'public.orders'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_CHANGE_LOGS: LiteralString = """
SELECT relname FROM pg_class
WHERE relnamespace = to_regnamespace('ordermigrate') AND relkind IN ('r', 'p')
    AND relname LIKE 'change\\_log\\_%' ORDER BY relname
"""
_INDEX_DEFINITIONS: LiteralString = """
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid),
    (SELECT conname FROM pg_constraint WHERE conindid = indexrelid AND contype = 'p')
FROM pg_index WHERE indrelid = 'public.orders'::regclass
"""


Query = LiteralString | sql.SQL | sql.Composed


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the contestants meet."""

    monolith: Server
    service: Server
    folder: Path
    rows: int
    locale: str
    settings: Mapping[str, Setting]

    @property
    def small_rows(self) -> int:
        """The rows of the smaller source."""
        return self.rows // SMALLER

    def source(self, name: str = SOURCE) -> str:
        """Return the DSN of a source."""
        return self.monolith.dsn(name)

    def target(self, name: str = TARGET) -> str:
        """Return the DSN of a target."""
        return self.service.dsn(name)

    def server_cpu_seconds(self) -> float | None:
        """Return the CPU seconds that both servers have used so far."""
        used = [tree_cpu_seconds(server.pid or 0) for server in (self.monolith, self.service)]
        known = [each for each in used if each is not None]
        return sum(known) if len(known) == len(used) else None

    def checkpoint(self) -> None:
        """Have both servers write out what they hold in memory."""
        for dsn in (self.monolith.dsn(), self.service.dsn()):
            execute(dsn, "CHECKPOINT")

    def program(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs, of the servers' own version."""
        return self.service.binaries.program(name)

    def psql(self, dsn: str, query: str) -> list[str]:
        """Return the command that runs one statement by psql."""
        return [self.program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", query, dsn]

    def run(self, *pipelines: Pipeline, expected: tuple[int, ...] = (0,)) -> list[Ended]:
        """Run client programs, PostgreSQL's own first on their PATH."""
        return programs.run(
            *pipelines,
            environment=self.peer_environment(),
            folder=self.folder,
            expected=expected,
        )

    def peer_environment(self) -> dict[str, str]:
        """Return the environment of client programs, PostgreSQL's own first on their PATH."""
        return programs.clean_environment(
            {**self.service.binaries.environment(), "PATH": self._path()}
        )

    def ordermigrate(
        self, *arguments: str, source: str, target: str, expected: tuple[int, ...] = (0,)
    ) -> Ended:
        """Run our command line in a process of its own, as an operator does."""
        return programs.run(
            [self._our_command(*arguments)],
            environment=self.variables(source, target),
            folder=self.folder,
            expected=expected,
        )[0]

    @contextmanager
    def syncing(self, source: str, target: str) -> Iterator[Running]:
        """Let `ordermigrate sync` run until the block ends."""
        with programs.running(
            self._our_command("sync"),
            environment=self.variables(source, target),
            folder=self.folder,
        ) as sync:
            yield sync

    def _our_command(self, *arguments: str) -> Command:
        return [programs.python(), "-m", "ordermigrate", *arguments, "--config", self.config]

    @property
    def config(self) -> str:
        """The configuration that our commands run with: the family's own."""
        return str(FAMILY / "ordermigrate.toml")

    def variables(self, source: str, target: str) -> dict[str, str]:
        """Return the environment of our commands."""
        return programs.clean_environment(
            {
                "ORDERMIGRATE_MONOLITH_DSN": self.source(source),
                "ORDERMIGRATE_SERVICE_DSN": self.target(target),
            }
        )

    def make_target(self, name: str = TARGET, *, has_tables: bool = False) -> None:
        """Make a target database anew, empty or with the service's tables and indexes."""
        server = self.service.dsn()
        database = sql.Identifier(name)
        execute(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
        execute(server, sql.SQL("CREATE DATABASE {}").format(database))
        if has_tables:
            run_script(self.target(name), FAMILY / "service.sql")

    def drop_indexes(self, name: str = TARGET) -> list[str]:
        """Drop a target's indexes and its key; return the statements that build them again."""
        found = fetch(self.target(name), _INDEX_DEFINITIONS)
        for index, _, constraint in found:
            statement = (
                sql.SQL("ALTER TABLE public.orders DROP CONSTRAINT {}").format(
                    sql.Identifier(constraint)
                )
                if constraint
                else sql.SQL("DROP INDEX {}").format(sql.SQL(index))
            )
            execute(self.target(name), statement)
        return [str(definition) for _, definition, _ in found]

    def forget_migration(self, source: str = SOURCE) -> None:
        """Remove what our commands have left in a source."""
        execute(self.source(source), "DROP SCHEMA IF EXISTS ordermigrate CASCADE")

    def start_migration(self, source: str, target: str) -> None:
        """Bring a source and an empty target to where sync begins: all copied, writes captured."""
        self.forget_migration(source)
        self.make_target(target)
        for verb in ("prepare", "copy"):
            self.ordermigrate(verb, source=source, target=target)
        # Hint bits and the visibility map, which a table in use has, too.
        execute(self.target(target), "VACUUM (ANALYZE) public.orders")

    def catch_up(self, source: str, target: str) -> Usage:
        """Run sync until it says that nothing is left to apply."""
        return self.ordermigrate("sync", "--until-caught-up", source=source, target=target).usage

    def change_logs(self, source: str) -> list[sql.Identifier]:
        """Return the change logs that `prepare` has made in a source.

        Raises:
            WrongResult: There is none.

        """
        names = [str(name) for (name,) in fetch(self.source(source), _CHANGE_LOGS)]
        if not names:
            raise WrongResult(f"ordermigrate prepare has made no change log in {source}")
        return [sql.Identifier("ordermigrate", name) for name in names]

    def count_backlog(self, source: str) -> int:
        """Return how many changes the logs of a source hold."""
        logs = self.change_logs(source)
        counts = (sql.SQL("(SELECT count(*) FROM {})").format(log) for log in logs)
        query = sql.SQL("SELECT {}").format(sql.SQL(" + ").join(counts))
        return int(fetch(self.source(source), query)[0][0])

    def columns(self) -> list[str]:
        """Return the names of the columns of orders, in their order."""
        return [str(name) for (name,) in fetch(self.source(), _COLUMNS)]

    def verify_rows(self, target: str, source: str, *, is_thorough: bool) -> None:
        """Raise unless both tables have as many rows, and with `is_thorough` the same ones."""
        query = _WITNESS if is_thorough else _FILL
        found, wanted = (fetch(dsn, query)[0] for dsn in (self.target(target), self.source(source)))
        if found != wanted:
            raise WrongResult(f"The target has {found}, the source {wanted}")

    def verify_job(self, target: str, source: str, *, is_thorough: bool) -> None:
        """Raise unless rows, all indexes and statistics are there."""
        self.verify_rows(target, source, is_thorough=is_thorough)
        indexes = fetch(self.target(target), _READY_INDEXES)[0][0]
        if indexes != INDEXES:
            raise WrongResult(f"The target has {indexes} valid indexes of {INDEXES}")
        if not fetch(self.target(target), _HAS_STATISTICS)[0][0]:
            raise WrongResult("The target has no statistics")

    def _path(self) -> str:
        usual = programs.clean_environment().get("PATH", "")
        return f"{self.service.binaries.bin_dir}:{usual}"


@contextmanager
def open_ground(
    rows: int, locale: str, settings: Mapping[str, Setting] = SETTINGS
) -> Iterator[Ground]:
    """Start both servers, fill the sources, and remove everything at the end."""
    binaries = find_binaries()
    with ExitStack() as stack:
        monolith, service = (
            stack.enter_context(
                closing(Server(name, binaries=binaries, settings=settings, locale=locale))
            )
            for name in ("monolith", "service")
        )
        monolith.start()
        service.start()
        folder = Path(tempfile.mkdtemp(prefix="ordermigrate-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ground = Ground(monolith, service, folder, rows, locale, settings)
        tell(f"PostgreSQL {binaries.version_text}, {rows:,} orders, locale {locale}")
        _fill_sources(ground)
        yield ground


def _fill_sources(ground: Ground) -> None:
    for name, rows in ((SOURCE, ground.rows), (SMALL_SOURCE, ground.small_rows)):
        tell(f"generating {rows:,} orders in {name}")
        execute(ground.monolith.dsn(), sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        run_script(ground.source(name), FAMILY / "monolith.sql")
        with psycopg.connect(ground.source(name), autocommit=True) as connection:
            # RawCursor takes $1 as the file has it.
            psycopg.RawCursor(connection).execute(
                (FAMILY / "generate.sql").read_bytes(), [USERS, rows, 1, 1, None]
            )
            # Hint bits and the visibility map, which a table in use has, too.
            connection.execute("VACUUM (ANALYZE)")
    clone(ground.monolith, SOURCE, ALONE_SOURCE)
    execute(
        ground.source(ALONE_SOURCE),
        "ALTER TABLE public.orders DROP CONSTRAINT orders_user_id_fkey",
        "DROP TABLE public.users",
    )


def clone(server: Server, name: str, copy: str) -> None:
    """Make a physical copy of a database, anew if it is there already."""
    execute(
        server.dsn(),
        sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(copy)),
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(copy), sql.Identifier(name)
        ),
    )


def execute(dsn: str, *statements: Query) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def fetch(dsn: str, query: Query) -> Sequence[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def run_script(dsn: str, path: Path) -> None:
    """Run a file of SQL in one transaction."""
    with psycopg.connect(dsn) as connection:
        connection.execute(path.read_bytes())


def total(ended: Sequence[Ended]) -> Usage:
    """Return what several pipelines cost together."""
    usage = Usage()
    for each in ended:
        usage += each.usage
    return usage
