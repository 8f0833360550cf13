"""What people and programs see: on terminals wide and narrow, without one, in any language."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.fix_orders import (
    ORDERS_TABLE,
    CliResult,
    Hub,
    MakeHub,
    RunCli,
    WriteToml,
    cli_environment,
    execute_behind_fence,
    identical,
)
from tests.fix_pairs import dsns
from tests.fix_postgres import execute

ORDERS = 12_000
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@pytest.fixture
def hub(make_hub: MakeHub, ordermigrate_toml: WriteToml) -> Hub:
    ordermigrate_toml(limits={"chunk_mib": 1, "workers": 1})
    return make_hub(users=100, orders=ORDERS)


def run_in_terminal(
    hub: Hub,
    folder: Path,
    *args: str,
    columns: int,
    env: Mapping[str, str] | None = None,
    has_stdout: bool = False,
) -> CliResult:
    """Run a command whose stderr, and stdout if wanted, is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = cli_environment(hub.monolith, hub.service, {"TERM": "xterm-256color"})
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "ordermigrate", *args],
        stdin=theirs,
        stdout=theirs if has_stdout else subprocess.PIPE,
        stderr=theirs,
        cwd=folder,
        env=environment | dict(env or {}),
    )
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)
    return CliResult(
        args, process.returncode, (stdout or b"").decode(), shown.decode("utf-8", "replace")
    )


def drawn_lines(text: str) -> list[str]:
    """Return what stood on each line at any time, without control sequences."""
    return [line for line in re.split(r"[\r\n]+", _SEQUENCE.sub("", text)) if line.strip()]


@pytest.mark.parametrize("columns", [40, 200])
def test_a_terminal_of_any_width_shows_a_bar_that_never_wraps(
    hub: Hub, tmp_path: Path, ordermigrate_toml: WriteToml, columns: int
) -> None:
    # Two orders of the last chunk take their time, so that the bar is seen to stand.
    slow = "retry_count IS DISTINCT FROM -5 OR public.takes_its_time(retry_count)"
    execute(
        hub.monolith,
        "CREATE FUNCTION public.takes_its_time(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE "
        "AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.5); RETURN true; END'",
    )
    ordermigrate_toml(
        tables=[{**ORDERS_TABLE, "where": slow}], limits={"chunk_mib": 1, "workers": 1}
    )
    execute(
        hub.monolith,
        "UPDATE public.orders SET retry_count = -5 "
        "WHERE id IN (SELECT id FROM public.orders ORDER BY id LIMIT 2)",
    )
    done = run_in_terminal(hub, tmp_path, "copy", columns=columns)
    assert done.exit_code == 0, done.stderr
    lines = drawn_lines(done.stderr)
    assert max(map(cell_len, lines)) <= columns, max(lines, key=cell_len)
    bars = [line for line in lines if "copying" in line or "connecting" in line]
    assert any("━" in line for line in bars)
    if columns >= 200:
        copying = [line for line in bars if "copying" in line]
        assert any(re.search(r"[\d,]+ of ~12,000 rows", line) for line in copying), copying
        assert any("rows/s" in line for line in copying)
        assert any("ETA ~" in line for line in copying)
    assert "\x1b[?25l" in done.stderr
    assert done.stderr.rindex("\x1b[?25h") > done.stderr.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b" not in done.stdout
    assert "12,000 rows" in done.stdout
    assert identical(hub.monolith, hub.service)


def test_a_verdict_fits_a_terminal_of_forty_columns(
    make_hub: MakeHub, tmp_path: Path, ordermigrate_toml: WriteToml
) -> None:
    ordermigrate_toml()
    hub = make_hub(users=3, orders=40)
    run_in_terminal(hub, tmp_path, "copy", columns=40)
    execute_behind_fence(
        hub.service, "UPDATE public.orders SET failure_reason = repeat('long ', 60)"
    )
    for args in (("validate", "--checksums"), ("status",), ("copy",)):
        done = run_in_terminal(hub, tmp_path, *args, columns=40, has_stdout=True)
        assert done.exit_code == (4 if args[0] == "validate" else 0)
        if args[0] == "validate":
            assert "DIFFERENT" in done.stderr
            # A key is whole: it has to be copied from the screen.
            ((key,),) = execute(hub.service, "SELECT min(id::text) FROM public.orders")
            assert key in "".join(done.stderr.split())


def test_no_color_takes_the_colours_away(hub: Hub, tmp_path: Path) -> None:
    done = run_in_terminal(hub, tmp_path, "copy", columns=100, has_stdout=True)
    assert _COLOUR.search(done.stderr)
    for env in ({}, {"NO_COLOR": "1"}):
        done = run_in_terminal(
            hub, tmp_path, "validate", "--checksums", columns=100, has_stdout=True, env=env
        )
        assert done.exit_code == 0
        assert bool(_COLOUR.search(done.stderr)) == (not env)


def test_a_dumb_terminal_gets_plain_lines(hub: Hub, tmp_path: Path) -> None:
    done = run_in_terminal(
        hub, tmp_path, "copy", columns=100, has_stdout=True, env={"TERM": "dumb"}
    )
    assert done.exit_code == 0
    assert "\x1b" not in done.stderr
    assert "copied 12,000 rows" in done.stderr


def test_without_a_terminal_there_are_plain_lines_only(hub: Hub, run_cli: RunCli) -> None:
    for args in (("copy",), ("validate", "--checksums")):
        done = run_cli(*args, **dsns(hub))
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr


def test_json_in_a_terminal_is_one_document_without_colours(hub: Hub, tmp_path: Path) -> None:
    done = run_in_terminal(hub, tmp_path, "copy", "--json", columns=60)
    assert done.exit_code == 0
    assert done.json["outcome"] == "copied"
    done = run_in_terminal(hub, tmp_path, "status", "--json", columns=30)
    assert done.json["phase"] == "copied"


def test_every_line_of_a_json_log_is_an_object_with_its_event(hub: Hub, run_cli: RunCli) -> None:
    both = dsns(hub)
    seen: dict[str, list[str]] = {}
    for args in (("prepare",), ("copy",), ("validate", "--checksums"), ("status",)):
        done = run_cli(*args, "--log-format", "json", **both)
        assert done.exit_code == 0
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        for line in lines:
            assert line["command"] == args[0]
            assert line["level"] == "info"
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["at"])
        seen[args[0]] = [line["event"] for line in lines]
    assert seen["prepare"] == ["prepared"]
    assert seen["status"] == []
    copied = seen["copy"]
    assert copied.count("chunk_copied") >= 3
    assert copied.count("index_built") == 7
    order = ["indexes_dropped", "snapshot_taken", "chunk_copied", "rows_copied", "index_built"]
    assert [copied.index(name) for name in order] == sorted(copied.index(name) for name in order)
    assert "analyzed" in copied
    assert {"check_started", "check_finished"} <= set(seen["validate"])
    done = run_cli("copy", "--log-format", "json", "--json", **both)
    assert done.json["outcome"] == "already_copied"


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_a_locale_without_letters_ends_no_command(
    make_hub: MakeHub, run_cli: RunCli, ordermigrate_toml: WriteToml, env: Mapping[str, str]
) -> None:
    ordermigrate_toml()
    hub = make_hub(users=3, orders=40)
    both = dsns(hub)
    assert run_cli("copy", **both, env=env).exit_code == 0
    execute_behind_fence(hub.service, "UPDATE public.orders SET failure_reason = 'não 注文 📦'")
    done = run_cli("validate", "--checksums", "--json", **both, env=env)
    assert done.exit_code == 4
    values = [
        each["columns"]["failure_reason"]["target"]
        for each in done.json["tables"][0]["differences"]
    ]
    assert set(values) == {"não 注文 📦"}  # a document is the same in every locale
    if "PYTHONIOENCODING" not in env:  # there the reader of this test is at a loss, not the writer
        done = run_cli("validate", "--checksums", **both, env=env)
        assert done.exit_code == 4
        assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_a_command_without_a_traceback(
    make_hub: MakeHub, ordermigrate_toml: WriteToml, tmp_path: Path
) -> None:
    ordermigrate_toml()
    hub = make_hub(users=3, orders=40)
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "ordermigrate", "status"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=cli_environment(hub.monolith, hub.service, None),
    )
    os.close(writer)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    assert process.returncode != 0
