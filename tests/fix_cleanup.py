"""A shop of two tables that the service has owned for long, ready to be cleaned up."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.acceptance.fix_running import bring_up, ends, succeed
from tests.fix_cut_over import cut_over
from tests.fix_orders import CliResult, RunningCli, StartCli
from tests.fix_pairs import MakePair, Pair, assert_refused, picture
from tests.fix_postgres import execute

TRACES = """
SELECT 'relation ' || relname FROM pg_class WHERE relname LIKE '%ordermigrate%'
UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname LIKE '%ordermigrate%'
    OR prosrc LIKE '%ordermigrate%' AND pronamespace <> 'pg_catalog'::regnamespace
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE '%ordermigrate%'
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE '%ordermigrate%'
UNION ALL SELECT 'type ' || typname FROM pg_type WHERE typname LIKE '%ordermigrate%'
UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE conname LIKE '%ordermigrate%'
UNION ALL SELECT 'publication ' || pubname FROM pg_publication WHERE pubname LIKE '%ordermigrate%'
"""
THING = (
    'CREATE TABLE public."Thing One" (id integer PRIMARY KEY, word text, '
    "number integer GENERATED ALWAYS AS IDENTITY)"
)
PART = "CREATE TABLE public.part (id integer, thing integer, PRIMARY KEY (id, thing))"
INSIDE = (
    "ALTER TABLE public.part ADD CONSTRAINT belongs "
    'FOREIGN KEY (thing) REFERENCES public."Thing One"'
)
NOTED = (
    "CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS "
    "$f$ BEGIN RETURN NEW; END $f$;"
    'CREATE TRIGGER noted BEFORE INSERT ON public."Thing One" FOR EACH ROW '
    "EXECUTE FUNCTION public.noted()"
)
# The second table has partitions; the first points at users, which stay, and so must work on.
MONOLITH = (
    "CREATE TABLE public.users (id integer PRIMARY KEY);"
    "INSERT INTO public.users SELECT n FROM generate_series(1, 50) n;"
    f'{THING}; ALTER TABLE public."Thing One" ADD CONSTRAINT of_user '
    "FOREIGN KEY (id) REFERENCES public.users;"
    f"{PART} PARTITION BY RANGE (id);"
    "CREATE TABLE public.low PARTITION OF public.part FOR VALUES FROM (0) TO (20);"
    "CREATE TABLE public.high PARTITION OF public.part FOR VALUES FROM (20) TO (100);"
    f"{INSIDE};"
    'INSERT INTO public."Thing One" (id, word) '
    "SELECT n, 'word ' || n FROM generate_series(1, 50) n;"
    "INSERT INTO public.part SELECT n, n FROM generate_series(1, 30) n"
)
SERVICE = f"{THING}; {PART}; {INSIDE}; {NOTED}"
TABLES: list[Mapping[str, object]] = [{"name": 'public."Thing One"'}, {"name": "public.part"}]
CONFIRMED = ("--confirm", 'public."Thing One"')
LIMITS: Mapping[str, object] = {"cleanup_wait_hours": 0, "lock_timeout_seconds": 5}
HALF = ("status", "sync", "validate", "prepare", "copy")


class Shop:
    """A pair that is cut over, what each side was before the migration, and the program."""

    def __init__(self, pair: Pair, start_cli: StartCli, folder: Path) -> None:
        self.pair = pair
        self.start_cli = start_cli
        self.folder = folder
        self.before, self.service = pair.kept

    def clean(self, *args: str, **limits: object) -> CliResult:
        """Run a cleanup, which has to succeed."""
        return succeed(self.but(**limits), "cleanup", *CONFIRMED, *args)

    def refuse(self, *says: str, exit_code: int = 3, **limits: object) -> CliResult:
        """Run a cleanup, which has to be refused and to change nothing."""
        pair = self.but(**limits)
        return pair.refuse("cleanup", *CONFIRMED, exit_code=exit_code, says=says)

    def but(self, **limits: object) -> Pair:
        """Return the pair with other limits."""
        return self.pair.but(limits={**self.pair.limits, **limits})

    def start(
        self, *args: str, at: tuple[str, int, Callable[[RunningCli], object]] | None = None
    ) -> RunningCli:
        """Start a cleanup in a process of its own."""
        self.pair.write_toml(tables=self.pair.tables, limits=self.pair.limits)
        return self.start_cli("cleanup", *CONFIRMED, *args, at=at, **ends(self.pair))

    def kill_at(self, event: str, nth: int = 1) -> None:
        """Have a cleanup killed at an event."""
        killed = self.start(at=(event, nth, RunningCli.kill)).finish()
        assert killed.exit_code == -9, killed.stderr

    def require_half(self) -> None:
        """Every other command sees the half of it, and says how to go on."""
        for command in HALF:
            self.pair.refuse(command, exit_code=3, says=["A cleanup", "`ordermigrate cleanup`"])

    def require_clean(self) -> None:
        """Nothing of ours is left anywhere, the monolith's tables are gone, and nothing else."""
        for dsn in (self.pair.monolith, self.pair.service):
            assert execute(dsn, TRACES) == []
        mine = ("Thing One", "public.part", "public.low", "public.high")
        expected = [line for line in self.before if not any(word in line for word in mine)]
        assert picture(self.pair.monolith) == expected
        assert definitions_of(picture(self.pair.service)) == definitions_of(self.service)
        assert self.pair.on_service('SELECT count(*) FROM public."Thing One"') == [(50,)]
        assert self.pair.on_service("SELECT count(*) FROM public.part") == [(30,)]

    def require_done(self) -> None:
        """A further cleanup finds nothing to do, and changes nothing."""
        before = self.pair.pictures()
        done = succeed(self.pair, "cleanup", "--json").json
        assert (done["outcome"], done["steps_taken"], done["owner"]) == ("nothing_to_do", [], None)
        assert self.pair.pictures() == before

    def finish(self) -> None:
        """Run the cleanup again, which has to end it."""
        assert self.clean("--json").json["outcome"] in {"cleaned", "nothing_to_do"}
        self.require_clean()
        self.require_done()

    @property
    def file(self) -> Path:
        """The backup."""
        (found,) = self.folder.glob("ordermigrate-backup/*.dump")
        return found


def hand_over(pair: Pair) -> tuple[list[str], list[str]]:
    """Make the service the owner; return what both sides were before the migration."""
    before = pair.pictures()
    cut_over(bring_up(pair))
    return before


def definitions_of(lines: list[str]) -> list[str]:
    """Return a picture without rows and files, which a copy changes."""
    return sorted(
        " ".join(word for word in line.split(" ") if not word.isdecimal())
        for line in lines
        if not line.startswith("rows ")
    )


def unreachable(dsn: str) -> str:
    """Return a DSN at which nobody answers."""
    assert conninfo_to_dict(dsn)
    return make_conninfo(dsn, host="127.0.0.1", port="1", connect_timeout="2")


@pytest.fixture
def shop(make_pair: MakePair, start_cli: StartCli, tmp_path: Path) -> Shop:
    """Two tables that the service has owned for 60 days, proved equal a moment ago."""
    pair = make_pair(MONOLITH, SERVICE, tables=TABLES, limits=LIMITS, brought_by=hand_over)
    return Shop(pair, start_cli, tmp_path)


__all__ = ["CONFIRMED", "Shop", "assert_refused", "shop", "unreachable"]
