"""Validate: prove that both sides hold the same rows, or name the ones that differ.

Both sides are read at the same time, each in one snapshot that stays open until the verdict. Memory
stays small however many rows there are and however many differ, and every differing row is
counted even if only some are shown.

An unreadable side is an error, never a difference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ordermigrate import catalog, digest, evaluation, locks, quarantine, queries
from ordermigrate.config import Limits
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.distribution_checks import check_latest, check_status, check_users
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable
from ordermigrate.model import Table, TableMap, find_parents, names_read
from ordermigrate.progress import Reporter
from ordermigrate.row_checks import check_count, check_rows
from ordermigrate.scanning import Comparison, Repair, open_scanner
from ordermigrate.stream_sessions import StreamSession
from ordermigrate.together import run_together
from ordermigrate.verdicts import TableVerdict, Verdict


async def open_scanners(
    sides: tuple[Session, Session], maps: Sequence[TableMap], limits: Limits
) -> list[StreamSession]:
    """Open a scanner on source and target, each with a snapshot of its own moment."""
    scanners: list[StreamSession] = []
    try:
        for session, tables in zip(sides, tables_of(maps), strict=True):
            names = names_read(maps) if session is sides[0] else [each.name for each in tables]
            scanners.append(await open_scanner(session, names, limits))
            # Locked from here on: what the catalog says now is true of the snapshot, too.
            await catalog.require_unchanged(session, tables)
    except BaseException:
        for scanner in scanners:
            scanner.terminate()
        raise
    return scanners


def tables_of(maps: Sequence[TableMap]) -> tuple[list[Table], list[Table]]:
    """Return the family's tables on the source, and on the target."""
    return [each.source for each in maps], [each.target for each in maps]


async def compare(
    scanners: Sequence[StreamSession],
    control: Session,
    watcher: Session,
    maps: Sequence[TableMap],
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
    repair: Repair | None = None,
) -> Verdict:
    """Compare source and target as two scanners see them, and close the scanners.

    Args:
        scanners: One on the source, one on the target, each with its snapshot.
        control: A control session on the source.
        watcher: Another one on the source, which sees to it that nobody's ALTER TABLE waits.
        maps: The family.
        reporter: Whom to tell of each check.
        algorithm: For row checksums; None leaves them out.
        max_differences: How many differing rows to name; all are counted.
        repair: Called with the keys of differing rows, a batch at a time.

    Rows that the target has in quarantine are left out on both sides.

    Raises:
        Refused: The algorithm cannot be had on both sides, or too many rows are in quarantine.
        Unavailable: A side cannot be read, or an exclusive lock waited for us.

    """
    started = time.monotonic()
    notes: list[str] = []

    def abort() -> None:
        for scanner in scanners:
            scanner.terminate()

    try:
        algorithm = await _choose(algorithm, scanners, notes)
        maps, left_out = await quarantine.leave_out(scanners, maps)
        notes.extend(left_out)
        oids = [leaf.oid for each in maps for leaf in each.source.leaves]
        oids += [each.source.oid for each in maps]
        oids += [parent.oid for parent, _ in find_parents(maps).values()]
        (verdicts,) = await run_together(
            _validate_tables(scanners, control, maps, reporter, algorithm, max_differences, repair),
            beside=[locks.watch_for_rewriters(watcher, oids, [scanners[0].pid])],
            abort=abort,
        )
    except OrdermigrateError as failed:
        abort()
        if named := await evaluation.explain_any(control, maps, failed):
            raise named from failed
        raise
    finally:
        abort()
    return Verdict(
        tuple(verdicts),
        algorithm.value if algorithm else None,
        time.monotonic() - started,
        tuple(notes),
    )


async def _validate_tables(
    scanners: Sequence[StreamSession],
    control: Session,
    maps: Sequence[TableMap],
    reporter: Reporter,
    algorithm: Algorithm | None,
    max_differences: int,
    repair: Repair | None,
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
            repair,
        )
        verdicts.append(await _validate_table(table, has_checksums=algorithm is not None))
    return verdicts


async def _choose(
    wanted: Algorithm | None, scanners: Sequence[StreamSession], notes: list[str]
) -> Algorithm | None:
    """Return the algorithm that both sides can compute, and say so where it is another one."""
    if wanted is not Algorithm.MD5:
        return wanted
    for scanner in scanners:
        await scanner.run("SAVEPOINT probe")
        try:
            await scanner.fetch_one("validate", "probe_md5")
        except Unavailable:
            raise
        except OrdermigrateError:
            await scanner.run("ROLLBACK TO SAVEPOINT probe")
            notes.append(f"the {scanner.side} refuses MD5 (FIPS mode?): SHA-256 was used instead")
            return Algorithm.SHA256
    return wanted


async def _is_same_byte_order(
    scanners: Sequence[StreamSession], algorithm: Algorithm | None
) -> bool:
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
