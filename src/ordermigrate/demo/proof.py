"""The story's part in which the copy is proved under fire, and the proof is put to proof."""

from __future__ import annotations

import psycopg

from ordermigrate import console, meters, sides
from ordermigrate.control import Session
from ordermigrate.demo.scene import Scene, count_orders, count_rows, describe
from ordermigrate.demo.traffic import FENCED
from ordermigrate.errors import OrdermigrateError
from ordermigrate.model import Side
from ordermigrate.outcomes import Validation


async def prove(scene: Scene) -> None:
    """Compare both sides while the writers write and sync goes on."""
    narrator = scene.narrator
    narrator.step("Prove it, under fire")
    narrator.say(
        "Equal row counts prove little. Both databases compute an MD5 of every row, all columns,",
        "and the sums are compared; a few questions that people would ask are answered beside",
        "that. Nobody waits: one round of sync lends both sides the same moment to look at, and",
        "everything else goes on.",
    )
    done = await scene.validate()
    require(done, None)
    console.show_verdict(describe(done))
    narrator.say(
        f"Equal: {count_orders(count_rows(done))}, every column,",
        f"in {meters.format_seconds(done.verdict.seconds)}.",
    )
    narrator.figures({"meanwhile": scene.describe_traffic()})


async def fool(scene: Scene) -> None:
    """Try to write past the fence; then plant one wrong digit behind it, and see it found."""
    narrator = scene.narrator
    narrator.step("Try to fool it")
    narrator.say(
        "The service does not own its orders yet, so nobody is to write there, not even the",
        "tables' owner. Somebody tries:",
    )
    service = await scene.open(Side.SERVICE)
    try:
        order = await scene.choose_order(service, scene.rows // 4)
        await _knock(scene, service, order.id)
        now = await _change_digit(service, order.id)
    finally:
        await service.close()
    narrator.say("")
    narrator.say(
        "A proof that never says no is worth nothing either. So one digit of one order is changed",
        "behind the fence, with the tool's own pass: the eighth decimal of its quantity.",
    )
    narrator.figures({"order": order.id, "was": order.quantity, "is": now})
    found = await scene.validate()
    require(found, order.id)
    console.show_differences(describe(found))
    narrator.say(
        f"Found: key, column and both values, in {meters.format_seconds(found.verdict.seconds)}.",
        "The command line exits with 4.",
    )
    await _mend(scene)


async def _knock(scene: Scene, service: Session, key: str) -> None:
    """Write to the service as anybody would, and show what it says."""
    statement = f"UPDATE orders SET status = status WHERE id = '{key}'"  # noqa: S608  to be read
    scene.narrator.command(f'psql {service.identity.database} -c "{statement}"')
    try:
        await service.fetch_all("story", "touch_order", key)
    except OrdermigrateError as error:
        if error.sqlstate != FENCED or not isinstance(error.__cause__, psycopg.Error):
            raise
        scene.narrator.row(f"ERROR:  {error.__cause__.diag.message_primary}")
    else:
        raise OrdermigrateError(
            "A write to the service was not refused",
            wanted="A fence around its orders",
            todo="Report this as a bug, with the output above",
        )


async def _change_digit(service: Session, key: str) -> str:
    """Change the last digit of an order's quantity behind the fence; return what it is now."""
    async with service.transaction():
        await sides.show_pass(service)
        changed = await service.fetch_one("story", "change_last_digit", key)
    return str(changed.quantity)


async def _mend(scene: Scene) -> None:
    narrator = scene.narrator
    narrator.step("Mend it, and prove again")
    narrator.say(
        "The monolith owns the orders, so its row is right. --repair puts the key of what differs",
        "into the change log, a round of sync applies it, and everything is compared once more.",
    )
    done = await scene.validate(is_repairing=True)
    require(done, None)
    if done.repaired_rows != 1:
        raise OrdermigrateError(
            f"{done.repaired_rows} rows were repaired",
            wanted="Exactly the one that was planted",
            todo="Report this as a bug, with the output above",
        )
    narrator.say(
        f"Repaired: 1 row. Equal again: {count_orders(count_rows(done))},",
        f"in {meters.format_seconds(done.verdict.seconds)}. The command line exits with 0.",
    )


def require(done: Validation, planted: str | None) -> None:
    """Raise an error unless a validation found just what was planted, or nothing."""
    differences = [each for table in done.verdict.tables for each in table.differences]
    found = {value for each in differences for value in each.key.values()}
    if done.verdict.is_equal is not (planted is None) or found != ({planted} - {None}):
        raise OrdermigrateError(
            f"The validation found {len(differences)} differing rows",
            wanted="Exactly the one that was planted" if planted else "None",
            todo="Report this as a bug, with the output above",
        )
