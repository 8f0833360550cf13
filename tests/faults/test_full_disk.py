"""A service that runs out of disk in mid-copy: a real file system that is full, and then is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.fix_copying import MakeCopying, names
from tests.fix_postgres import TestServer


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory, mounted for one test, with a tablespace of the server on it."""

    path: Path
    name: str

    def resize(self, mib: float) -> None:
        """Make room, or take it away."""
        size = f"remount,size={int(mib * 1024)}k"
        subprocess.run(["mount", "-o", size, str(self.path)], check=True)


@pytest.fixture
def small_disk(service_server: TestServer) -> Iterator[SmallDisk]:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    if service_server.own is None:
        pytest.skip("needs a server on this machine")
    path = Path(tempfile.mkdtemp(prefix="ordermigrate-disk-", dir="/tmp"))
    owner = service_server.own.data_dir.stat().st_uid
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=64m,mode=0700,uid={owner}", "tmpfs", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        path.rmdir()
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    disk = SmallDisk(path, f"small_{os.getpid()}")
    try:
        service_server.run(f"CREATE TABLESPACE {disk.name} LOCATION '{path}'")
        yield disk
    finally:
        service_server.run(f"DROP TABLESPACE IF EXISTS {disk.name}")
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


def test_a_full_disk_in_mid_copy_is_told_and_with_room_the_copy_goes_on(
    small_disk: SmallDisk, make_copying: MakeCopying
) -> None:
    move = f"ALTER TABLE public.orders SET TABLESPACE {small_disk.name}"
    copying = make_copying(scripts=("", move))
    small_disk.resize(3)
    full = copying.run()
    assert full.exit_code == 5, (full.exit_code, full.stderr)
    message = full.stderr.splitlines()[-1]
    assert "The service's server has run out of room" in message
    assert "53100" in message
    assert "Make room and run the same command again; it goes on where it stopped" in message
    assert copying.on_service("SELECT phase FROM ordermigrate.run") == [("copying",)]
    still_full = copying.run()
    assert still_full.exit_code == 5, (still_full.exit_code, still_full.stderr)
    small_disk.resize(64)
    done = copying.finish()
    total = [*names(full), *names(still_full), *names(done)].count("chunk_copied")
    assert total == copying.on_service("SELECT count(*) FROM ordermigrate.chunk")[0][0]


def test_a_disk_full_of_indexes_is_told_and_with_room_only_those_missing_are_built(
    small_disk: SmallDisk, make_copying: MakeCopying
) -> None:
    move = f"ALTER INDEX ALL IN TABLESPACE pg_default SET TABLESPACE {small_disk.name}"
    copying = make_copying(scripts=("", move))
    small_disk.resize(0.6)
    full = copying.run()
    assert full.exit_code == 5, (full.exit_code, full.stderr)
    assert "The service's server has run out of room" in full.stderr.splitlines()[-1]
    small_disk.resize(64)
    done = copying.finish()
    assert "chunk_copied" not in names(done)
