"""The tutorial's commands, one block after the other, as a reader would run them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
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


@pytest.mark.slow
def test_the_tutorials_commands_do_what_it_says(
    monolith_dsn: str, service_dsn: str, tmp_path: Path
) -> None:
    blocks = BLOCK.findall(TUTORIAL.read_text("utf-8"))
    assert len(blocks) > 8
    (tmp_path / "sql").symlink_to(ROOT / "sql")
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
            cwd=tmp_path,
            env=environment,
            timeout=60,
        )
        assert done.returncode == int(exit_code or 0), f"{block}\n{done.stdout}"
        said += done.stdout
    assert said.count("EQUAL: 20,000 rows") == 2
    assert "DIFFERENT: 20,000 rows" in said
    assert "service   'Market closed '" in said
