# ruff: noqa: S608  statements are put together from constants
"""Writes that `--offline` promised away: found and told, and the copy is not called complete."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.fix_copying import Copying, MakeCopying, names, transaction
from tests.fix_orders import CliResult, RunningCli

ONE = "WHERE ctid = (SELECT min(ctid) FROM public.orders)"
UPDATE = "UPDATE public.orders SET quantity = quantity + 1 " + ONE
DELETE = "DELETE FROM public.orders " + ONE
NEW_ORDER = (
    "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity) "
    "VALUES (gen_random_uuid(), 1, 'NEW', 'MARKET', 'BUY', 1)"
)
WRITES = {
    "update": UPDATE,
    "delete": DELETE,
    "insert and delete": f"{NEW_ORDER}; {DELETE}",
    "truncate": "TRUNCATE public.orders",
}


def assert_told(result: CliResult) -> None:
    assert result.exit_code == 3, (result.exit_code, result.stderr)
    message = result.stderr.splitlines()[-1]
    assert "The monolith was written to" in message
    assert "public.orders" in message
    assert "`ordermigrate copy --offline --restart`" in message
    assert "Traceback" not in result.stderr


def assert_begins_again(copying: Copying) -> None:
    """Assert that the copy is not called complete, and that a new one is right."""
    assert copying.on_service("SELECT phase FROM ordermigrate.run") == [("copying",)]
    copying.finish("--restart")


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"])


def copy_with_mid_copy(copying: Copying, act: Callable[[], object]) -> CliResult:
    """Do something while a chunk is on its way on each worker, then let the copy go on."""
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    act()
    copying.proxies["service"].heal()
    return running.finish()


@pytest.mark.parametrize("write", WRITES)
def test_a_write_in_mid_copy_is_refused_and_told(copying: Copying, write: str) -> None:
    assert_told(copy_with_mid_copy(copying, lambda: copying.on_monolith(WRITES[write])))
    assert_begins_again(copying)


def test_a_write_between_a_killed_copy_and_its_resume_is_refused_at_once_and_for_good(
    make_copying: MakeCopying,
) -> None:
    copying = make_copying()
    copying.run(at=("chunk_copied", 1, RunningCli.kill))
    copying.on_monolith(UPDATE)
    for _ in range(2):
        resumed = copying.run()
        assert_told(resumed)
        assert "chunk_copied" not in names(resumed)
    copying.finish("--restart")


def test_a_delete_between_a_killed_copy_and_its_resume_is_refused_in_the_end(
    make_copying: MakeCopying,
) -> None:
    # A row that is gone leaves no trace before all rows have been counted.
    copying = make_copying()
    copying.run(at=("chunk_copied", 1, RunningCli.kill))
    copying.on_monolith(DELETE)
    assert_told(copying.run())
    assert_begins_again(copying)


@pytest.mark.parametrize(
    "statements",
    [
        [UPDATE],
        ["SAVEPOINT s", UPDATE, "RELEASE s"],
        ["SAVEPOINT s", NEW_ORDER, "ROLLBACK TO s", UPDATE],
    ],
    ids=lambda statements: ", ".join(each.split()[0] for each in statements),
)
def test_a_transaction_open_at_the_snapshot_that_commits_later_is_found(
    copying: Copying, statements: list[str]
) -> None:
    with transaction(copying.hub.monolith) as writer:
        for statement in statements:
            writer.execute(statement.encode())
        assert_told(copy_with_mid_copy(copying, writer.commit))
    assert_begins_again(copying)


def test_a_savepoint_opened_before_the_snapshot_and_written_in_after_it_is_found(
    copying: Copying,
) -> None:
    with transaction(copying.hub.monolith) as writer:
        writer.execute("SAVEPOINT s")
        writer.execute("UPDATE public.users SET full_name = 'x' WHERE id = 1")

        def write() -> None:
            writer.execute(UPDATE.encode())
            writer.commit()

        assert_told(copy_with_mid_copy(copying, write))
    assert_begins_again(copying)


def test_what_is_no_write_since_the_snapshot_is_no_false_alarm(copying: Copying) -> None:
    # A long transaction elsewhere, a reader's row locks, a rollback, and writes that were committed
    # before the snapshot although the long transaction is older than they are.
    with (
        transaction(copying.hub.monolith) as bystander,
        transaction(copying.hub.monolith) as undecided,
        transaction(copying.hub.monolith) as reader,
        transaction(copying.hub.monolith) as writer,
    ):
        bystander.execute("UPDATE public.users SET full_name = 'busy' WHERE id = 1")
        for statement in ("SAVEPOINT s", UPDATE, "RELEASE s", NEW_ORDER):
            writer.execute(statement.encode())
        writer.commit()
        reader.execute("SELECT id FROM public.orders WHERE ctid > '(9,0)' LIMIT 5 FOR KEY SHARE")
        undecided.execute("SAVEPOINT s")
        undecided.execute(DELETE.encode())

        def end_all() -> None:
            undecided.rollback()
            reader.commit()
            bystander.commit()

        result = copy_with_mid_copy(copying, end_all)
    assert result.exit_code == 0, result.stderr
    copying.assert_complete()


def test_without_offline_a_monolith_that_is_written_to_is_refused_before_anything(
    copying: Copying,
) -> None:
    with transaction(copying.hub.monolith) as writer:
        writer.execute(NEW_ORDER.encode())
        refused = copying.run_cli("copy")
        writer.rollback()
    assert refused.exit_code == 3, refused.stderr
    assert "being written to" in refused.stderr
    assert copying.definitions() == copying.definitions_before
    copying.finish()


@pytest.mark.parametrize(
    ("moment", "write"),
    [
        ("in mid-copy", NEW_ORDER),
        ("between attempts", NEW_ORDER),
    ],
    ids=["in mid-copy", "between attempts"],
)
def test_a_row_that_someone_else_writes_into_the_service_is_refused(
    copying: Copying, moment: str, write: str
) -> None:
    if moment == "in mid-copy":
        result = copying.run(at=("chunk_copied", 1, lambda _: copying.on_service(write)))
    else:
        copying.run(at=("chunk_copied", 1, RunningCli.kill))
        copying.on_service(write)
        result = copying.run()
    assert result.exit_code == 3, (result.exit_code, result.stderr)
    assert "public.orders on the service is not as the copy left it" in result.stderr
    assert_refused_by_the_service(copying)


def test_a_row_that_someone_else_deletes_from_the_service_is_refused(copying: Copying) -> None:
    result = copying.run(at=("chunk_copied", 1, lambda _: copying.on_service(DELETE)))
    assert result.exit_code == 3, (result.exit_code, result.stderr)
    assert "public.orders on the service is not as the copy left it" in result.stderr
    copying.finish("--restart")  # nothing is there that anyone else could miss


def assert_refused_by_the_service(copying: Copying) -> None:
    """Assert that rows which are not ours are never removed, until someone else does."""
    refused = copying.run("--restart")
    assert refused.exit_code == 3, refused.stderr
    copying.on_service("TRUNCATE public.orders")
    copying.finish("--restart")


def test_rows_in_an_empty_service_are_refused_before_anything(copying: Copying) -> None:
    copying.run(at=("indexes_dropped", 1, RunningCli.kill))
    copying.on_service(NEW_ORDER)
    refused = copying.run()
    assert refused.exit_code == 3, refused.stderr
    assert "is not empty" in refused.stderr
    copying.on_service("TRUNCATE public.orders")
    copying.finish()
