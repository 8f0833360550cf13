"""Validate: prove that both sides hold the same rows, or name the ones that differ.

Both sides are read at the same time, each in one snapshot that stays open until the verdict. Memory
stays small however many rows there are and however many differ, and every differing row is
counted even if only some are shown.

An unreadable side is an error, never a difference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ordermigrate import catalog, digest, queries
from ordermigrate.config import Limits
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.distribution_checks import check_latest, check_status, check_users
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable
from ordermigrate.model import TableMap
from ordermigrate.progress import Reporter
from ordermigrate.row_checks import check_count, check_rows
from ordermigrate.scanning import Comparison, Scanner, open_scanner
from ordermigrate.together import run_together
from ordermigrate.verdicts import TableVerdict, Verdict


async def validate(
    sides: tuple[Session, Session],
    watcher: Session,
    maps: Sequence[TableMap],
    limits: Limits,
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
) -> Verdict:
    """Compare source and target.

    Args:
        sides: Control sessions on source and target.
        watcher: Another one on the source, which sees to it that nobody's ALTER TABLE waits.
        maps: The family.
        limits: Ages and timeouts to keep.
        reporter: Whom to tell of each check.
        algorithm: For row checksums; None leaves them out.
        max_differences: How many differing rows to name; all are counted.

    Raises:
        Refused: The algorithm cannot be had on both sides.
        Unavailable: A side cannot be read, or an exclusive lock waited for us.

    """
    started = time.monotonic()
    notes: list[str] = []
    algorithm = await _choose(algorithm, sides, notes)
    scanners: list[Scanner] = []

    def abort() -> None:
        for scanner in scanners:
            scanner.connection.terminate()

    try:
        for session, tables in (
            (sides[0], [each.source for each in maps]),
            (sides[1], [each.target for each in maps]),
        ):
            names = [table.name for table in tables]
            scanners.append(await open_scanner(session, names, limits))
            # Locked from here on: what the catalog says now is true of the snapshot, too.
            await catalog.require_unchanged(session, tables)
        oids = [leaf.oid for each in maps for leaf in each.source.leaves]
        oids += [each.source.oid for each in maps]
        (verdicts,) = await run_together(
            _validate_tables(scanners, sides[0], maps, reporter, algorithm, max_differences),
            beside=[
                catalog.watch_for_rewriters(
                    watcher, oids, [scanners[0].connection.get_server_pid()]
                )
            ],
            abort=abort,
        )
    finally:
        abort()
    return Verdict(
        tuple(verdicts),
        algorithm.value if algorithm else None,
        time.monotonic() - started,
        tuple(notes),
    )


async def _validate_tables(
    scanners: Sequence[Scanner],
    control: Session,
    maps: Sequence[TableMap],
    reporter: Reporter,
    algorithm: Algorithm | None,
    max_differences: int,
) -> list[TableVerdict]:
    chosen = algorithm or Algorithm.MD5
    is_same_byte_order = await _is_same_byte_order(scanners, algorithm)
    verdicts = []
    for each in maps:
        views = (
            digest.source_view(each, chosen, is_same_byte_order=is_same_byte_order),
            digest.target_view(each, chosen, is_same_byte_order=is_same_byte_order),
        )
        table = Comparison(
            each,
            (scanners[0], views[0]),
            (scanners[1], views[1]),
            control,
            reporter,
            max_differences,
        )
        verdicts.append(await _validate_table(table, has_checksums=algorithm is not None))
    return verdicts


async def _choose(
    wanted: Algorithm | None, sides: Sequence[Session], notes: list[str]
) -> Algorithm | None:
    """Return the algorithm that both sides can compute, and say so where it is another one."""
    if wanted is not Algorithm.MD5:
        return wanted
    for session in sides:
        try:
            await session.fetch_one("validate", "probe_md5")
        except Unavailable:
            raise
        except OrdermigrateError:
            notes.append(f"the {session.side} refuses MD5 (FIPS mode?): SHA-256 was used instead")
            return Algorithm.SHA256
    return wanted


async def _is_same_byte_order(scanners: Sequence[Scanner], algorithm: Algorithm | None) -> bool:
    statement = queries.get("validate", "probe_byte_order")
    hashes = {(await scanner.fetch(statement))[0]["hash"] for scanner in scanners}
    if len(hashes) > 1 and algorithm is Algorithm.RECORD_HASH:
        raise Refused(
            "The two servers hash the same record differently (byte order or version)",
            wanted="A digest that means the same on both sides",
            todo="Use --algorithm md5 or sha256",
        )
    return len(hashes) == 1


async def _validate_table(table: Comparison, *, has_checksums: bool) -> TableVerdict:
    if has_checksums:
        await check_rows(table)
    else:
        await check_count(table)
    await check_status(table)
    await check_users(table)
    await check_latest(table)
    return TableVerdict(
        table.map.label,
        str(table.map.target.name),
        *table.rows,
        tuple(table.checks),
        tuple(table.differences),
        table.differences_total,
        table.map.notes,
    )
