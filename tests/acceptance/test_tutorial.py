"""The tutorial's commands, one block after the other, as a reader would run them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ordermigrate.demo import binaries
from ordermigrate.errors import OrdermigrateError
from tests.fix_orders import cli_environment

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```sh run(?: exit=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROWS = ("300000", "20000")  # as it is written, and as it is tried


def search_path() -> str:
    """Return a PATH with ordermigrate, and with a psql from wherever the servers come from."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    with contextlib.suppress(OrdermigrateError):
        folders.append(str(binaries.find_binaries().bin_dir))
    return os.pathsep.join(folders)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the reader works; what runs in the background there is ended."""
    (tmp_path / "sql").symlink_to(ROOT / "sql")
    yield tmp_path
    for noted in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(noted.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorials_commands_do_what_it_says(
    monolith_dsn: str, service_dsn: str, folder: Path
) -> None:
    blocks = BLOCK.findall(TUTORIAL.read_text("utf-8"))
    assert len(blocks) > 12
    environment = cli_environment(monolith_dsn, service_dsn, {"PATH": search_path()})
    said = ""
    for exit_code, block in blocks:
        done = subprocess.run(
            ["bash", "-c", block.replace(*ROWS)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            cwd=folder,
            env=environment,
            timeout=100,
        )
        assert done.returncode == int(exit_code or 0), f"{block}\n{done.stdout}"
        said += done.stdout
    verdicts = re.findall(r"^(EQUAL|DIFFERENT): ([\d,]+) rows", said, re.MULTILINE)
    assert [verdict for verdict, _ in verdicts] == ["EQUAL", "DIFFERENT", *["EQUAL"] * 3]
    # The application never stopped, whoever was the owner: there are more rows each time that both
    # sides are compared.
    rows = [int(count.replace(",", "")) for _, count in verdicts]
    assert 20_000 < rows[0] < rows[1] < rows[2] < rows[3] < rows[4], rows
    assert re.search(r"^ERROR: +public.orders is fenced: the monolith owns it$", said, re.MULTILINE)
    assert "service   'Market closed '" in said
    assert "repaired: 1 row" in said
    assert re.search(r"backlog +[\d,]+ changes, .*; sync is at work", said)
    assert "next: ordermigrate cutover  (every gate is open)" in said
    owners = re.findall(r"^done: the (\w+) owns the tables; for \d+ ms", said, re.MULTILINE)
    assert owners == ["service", "monolith", "service"]
    assert "public.orders is fenced: the service owns it" in said
    assert re.search(r"^owner +service\s*$", said, re.MULTILINE)
