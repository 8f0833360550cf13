"""What --throttle takes, and when the copy waits for a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ordermigrate import throttle
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import Side
from ordermigrate.throttle import Signs


def test_every_sign_is_read_with_its_limit() -> None:
    given = ("replica-lag=2.5", "sessions=40", "file=stop/a=b")
    assert throttle.parse(given) == Signs(2.5, 40, Path("stop/a=b"))
    assert throttle.parse(()) == Signs()
    assert not Signs().is_any
    assert throttle.parse(("sessions=0",)).is_any


def test_of_a_sign_given_twice_the_last_counts() -> None:
    assert throttle.parse(("sessions=1", "sessions=2")) == Signs(active_sessions=2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("load=3", "no sign"),
        ("sessions", "no sign"),
        ("sessions=", "no sign"),
        ("=3", "no sign"),
        ("sessions=many", "not a number"),
        ("sessions=1.5", "not a number"),
        ("replica-lag=soon", "not a number"),
        ("replica-lag=nan", "not a number"),
        ("sessions=-1", "negative"),
        ("replica-lag=-0.1", "negative"),
    ],
)
def test_what_is_no_sign_is_refused_with_the_signs_there_are(given: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        throttle.parse((given,))
    assert "replica-lag=SECONDS" in str(refused.value)


class Source:
    """What the source says of itself; no server is so busy, or so far behind, when one wants it."""

    side = Side.MONOLITH

    def __init__(
        self, lag: float | None = None, sessions: int = 0, *, is_hidden: bool = False
    ) -> None:
        self.row = SimpleNamespace(
            replica_lag_seconds=lag, active_sessions=sessions, is_hidden=is_hidden
        )
        self.looks = 0

    async def fetch_one(self, module: str, name: str) -> SimpleNamespace:
        assert (module, name) == ("throttle", "read_signs")
        self.looks += 1
        return self.row


async def find(source: Source, signs: Signs) -> str:
    return await throttle.find_reason(cast("Session", source), signs)


async def test_a_file_stops_the_copy_without_a_look_at_the_server(tmp_path: Path) -> None:
    source = Source()
    file = tmp_path / "stop"
    assert await find(source, Signs(file=file)) == ""
    file.touch()
    assert await find(source, Signs(file=file)) == f"the file {file} is there"
    assert source.looks == 0


async def test_a_limit_is_what_may_just_be_reached() -> None:
    signs = Signs(replica_lag_seconds=2, active_sessions=10)
    assert await find(Source(2.0, 10), signs) == ""
    assert await find(Source(None, 10), signs) == ""
    assert await find(Source(2.06, 10), signs) == (
        "a replica of the monolith is 2.1 s behind (limit 2 s)"
    )
    assert await find(Source(0.0, 11), signs) == "11 sessions are active on the monolith (limit 10)"


async def test_a_sign_without_a_limit_does_not_matter() -> None:
    assert await find(Source(99.0, 1), Signs(active_sessions=1)) == ""
    assert await find(Source(0.0, 99), Signs(replica_lag_seconds=1)) == ""


async def test_a_lag_that_our_role_may_not_see_is_refused_where_it_matters() -> None:
    with pytest.raises(Refused, match="pg_monitor"):
        await find(Source(is_hidden=True), Signs(replica_lag_seconds=1))
    assert await find(Source(is_hidden=True), Signs(active_sessions=1)) == ""
