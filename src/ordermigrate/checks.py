"""Every check of preflight, in one table: its key, how grave what it finds is, what that means.

The command and the reference are made from this table; a new check is one entry more. What makes
a check a `stop` is that a changing command would refuse, or that something would be left behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ordermigrate import capture, reversing, sequences, sides
from ordermigrate import checks_neighbours as neighbours
from ordermigrate import checks_servers as servers
from ordermigrate import checks_tables as tables
from ordermigrate.errors import Refused, UsageError
from ordermigrate.findings import Severity, Spot
from ordermigrate.model import Side
from ordermigrate.survey import Survey

See = Callable[[Survey, Side], Awaitable[list[Spot]]]
STOP, WARN, NOTE = Severity.STOP, Severity.WARN, Severity.NOTE
MONOLITH, SERVICE = (Side.MONOLITH,), (Side.SERVICE,)
EACH = (Side.MONOLITH, Side.SERVICE)
# Of both at once: told of neither side alone.
BOTH: tuple[Side, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked for.

    `sides` are those on which it is looked for by itself; none, where it is about both at once.
    """

    key: str
    severity: Severity
    sides: tuple[Side, ...]
    see: See
    meaning: str
    todo: str


async def _see_other_migration(survey: Survey, _: Side) -> list[Spot]:
    try:
        await sides.read_both(survey.session(Side.MONOLITH), survey.session(Side.SERVICE))
    except (Refused, UsageError) as other:
        return [Spot(other.fact, other.todo)]
    return []


async def _see_subscriptions(survey: Survey, side: Side) -> list[Spot]:
    found = await capture.find_subscriptions(
        survey.session(side), (await survey.tables(side)).values()
    )
    return [Spot(f"{said} on the {side}") for said in found]


async def _see_sequence_obstacles(survey: Survey, _: Side) -> list[Spot]:
    maps, _misfits = await survey.fit()
    allowed = await sequences.count_sessions(survey.session(Side.MONOLITH))
    return _say(sequences.find_obstacles(sequences.pair_sequences(maps), allowed))


async def _see_way_back(survey: Survey, _: Side) -> list[Spot]:
    maps, _misfits = await survey.fit()
    return _say(reversing.find_obstacles(maps))


async def _see_narrow_columns(survey: Survey, _: Side) -> list[Spot]:
    maps, _misfits = await survey.fit()
    return _say(reversing.find_narrow_columns(maps))


def _say(sentences: Iterable[str]) -> list[Spot]:
    return [Spot(said) for said in sentences]


# fmt: off  an entry is read at a glance
CHECKS: tuple[Check, ...] = (
    # ------------------------------------------------------------------------------- the servers
    Check(
        "unreachable",
        STOP,
        EACH,
        servers.see_unreachable,
        "Nothing can be done, and nothing else be checked, on a side that does not let us in.",
        "Correct the DSN, or let the server, its pg_hba.conf and the network let us through.",
    ),
    Check(
        "one-database",
        STOP,
        BOTH,
        servers.see_one_database,
        "Both DSNs lead to the same database; there is nothing to move.",
        "Correct the DSN of one of them.",
    ),
    Check(
        "several-servers",
        STOP,
        EACH,
        servers.see_several_servers,
        "A DSN that leads here once and there another time (several hosts, a balancer, a name with "
        "several addresses) lets a copy read from two servers.",
        "Name one host, or add target_session_attrs=primary.",
    ),
    Check(
        "pooler",
        STOP,
        EACH,
        servers.see_faults("pooler"),
        "A pooler hands each transaction another server session: settings, locks and snapshots "
        "of ours would not hold.",
        "Let the DSN point at PostgreSQL itself; applications can go on using the pooler.",
    ),
    Check(
        "session-settings",
        STOP,
        EACH,
        servers.see_faults("session-settings"),
        "Something changes what we set in our sessions, and values would not mean the same on "
        "both sides.",
        "Look for what resets settings: a pooler, a login trigger.",
    ),
    Check(
        "version",
        STOP,
        EACH,
        servers.see_faults("version"),
        "The server is older than what we work with.",
        "Upgrade it to PostgreSQL 14 or later first.",
    ),
    Check(
        "version-untried",
        WARN,
        EACH,
        servers.see_version,
        f"We are tested on PostgreSQL 14 to {servers.NEWEST}; this one is newer.",
        "Try the whole migration on a copy of both databases first.",
    ),
    Check(
        "durability",
        STOP,
        EACH,
        servers.see_faults("durability"),
        "What was committed may be lost or broken by a crash.",
        "Set fsync and full_page_writes to on.",
    ),
    Check(
        "standby",
        STOP,
        EACH,
        servers.see_standby,
        "A standby takes no writes, and both sides get a row of ours.",
        "Let the DSN lead to the primary; target_session_attrs=primary helps.",
    ),
    Check(
        "synchronous-standby",
        STOP,
        EACH,
        servers.see_standbys,
        "Each commit would wait for a standby that is not there.",
        "Connect the standby, or take it out of synchronous_standby_names.",
    ),
    Check(
        "other-migration",
        STOP,
        BOTH,
        _see_other_migration,
        "What an earlier migration has left in these two databases does not belong together, or "
        "not in these places.",
        "Do what the finding says; `ordermigrate cancel` removes what is left of an old one.",
    ),
    Check(
        "connections",
        STOP,
        EACH,
        servers.see_connections,
        "Our sessions would be refused, or leave none for the application.",
        "Raise the limit, or set fewer workers under [limits].",
    ),
    Check(
        "lock-room",
        WARN,
        EACH,
        servers.see_lock_room,
        "A transaction may end with `out of shared memory`, ours or the application's.",
        "Raise max_locks_per_transaction (takes a restart), or detach old partitions first.",
    ),
    Check(
        "encoding",
        WARN,
        BOTH,
        servers.see_encoding,
        "A letter that the service's encoding lacks would stop the copy at its row.",
        "Create the service's database with ENCODING 'UTF8'.",
    ),
    Check(
        "collation",
        NOTE,
        BOTH,
        servers.see_locale,
        "Text is sorted and compared by other rules; orders, ranges and LIKE may find other rows.",
        "Create the service's database with the monolith's collation if that matters.",
    ),
    Check(
        "clocks",
        WARN,
        BOTH,
        servers.see_clocks,
        "Nothing depends on it but times that people compare: created_at, `rollback --since`.",
        "Set both servers' clocks by NTP.",
    ),
    Check(
        "md5",
        NOTE,
        EACH,
        servers.see_md5,
        "A server in FIPS mode refuses MD5; row digests are taken by SHA-256 instead, which takes "
        "longer.",
        "Nothing.",
    ),
    Check(
        "wal",
        WARN,
        EACH,
        servers.see_kept_wal,
        "What a copy and its index builds write to the log stays on the disk until this is over.",
        "Drop slots that nobody needs, mend the archiving, or see that the disk has room.",
    ),
    Check(
        "room",
        NOTE,
        MONOLITH,
        servers.see_room,
        "SQL does not tell how much room a disk has. The time is reckoned from the size alone, "
        "for servers slow and fast.",
        "Compare it with what is free on the service's disk.",
    ),
    Check(
        "timeouts",
        WARN,
        EACH,
        servers.see_timeouts,
        "Whose statement_timeout or lock_timeout is shorter than the pause of a cutover, gets "
        "errors in it.",
        "Raise it for the cutover, or lower max_pause_seconds under [limits].",
    ),
    Check(
        "event-triggers",
        NOTE,
        EACH,
        servers.see_event_triggers,
        "They run when we create or drop something of ours, and could refuse it.",
        "See that they let our role through.",
    ),
    # ------------------------------------------------------------------------- what goes on there
    Check(
        "long-transactions",
        WARN,
        EACH,
        servers.see_long_transactions,
        "Open for longer than lock_timeout_seconds: we may not get a lock beside it, and no VACUUM "
        "cleans up behind it.",
        "Let it end, or end it, before `prepare` and before `cutover`.",
    ),
    Check(
        "prepared-transactions",
        STOP,
        EACH,
        servers.see_prepared,
        "It holds its locks until somebody ends it, whatever happens: neither `prepare` nor "
        "`cutover` would get theirs.",
        "COMMIT PREPARED or ROLLBACK PREPARED it.",
    ),
    Check(
        "maintenance",
        NOTE,
        EACH,
        servers.see_maintenance,
        "`prepare` waits until it is over; an autovacuum gives way.",
        "Let it end.",
    ),
    Check(
        "writers",
        NOTE,
        MONOLITH,
        servers.see_writers,
        "These have to write to the service after the cutover. It is a moment's picture.",
        "Look whether you know them all.",
    ),
    # --------------------------------------------------------------------------------- the tables
    Check(
        "table-missing",
        STOP,
        EACH,
        tables.see_absence("table-missing"),
        "A table of the configuration is not there.",
        "Correct its name; on the service, create it, or let `family` bring it.",
    ),
    Check(
        "no-table",
        STOP,
        EACH,
        tables.see_absence("no-table"),
        "Only tables can be copied and captured.",
        "Name the table that holds the rows.",
    ),
    Check(
        "rights-read",
        STOP,
        EACH,
        tables.see_absence("rights-read"),
        "We may not read a table.",
        "Connect as its owner.",
    ),
    Check(
        "parts-unreadable",
        STOP,
        EACH,
        tables.see_parts,
        "A partition or child cannot be read by itself, and copies read them one by one.",
        "Give our role the right, or detach a part that is no table.",
    ),
    Check(
        "rights-insert",
        STOP,
        SERVICE,
        tables.see_presences(tables.find_write_rights),
        "The copy could not write.",
        "Connect as the tables' owner.",
    ),
    Check(
        "rights-owner",
        STOP,
        EACH,
        tables.see_presences(tables.find_strange_owners),
        "Triggers, indexes and constraints are the owner's to change.",
        "Connect as the owner, or GRANT the owner's role to ours.",
    ),
    Check(
        "rights-schema",
        STOP,
        EACH,
        tables.see_schema_right,
        "The ledger, the change logs and the fence live in a schema of our own.",
        "GRANT CREATE ON DATABASE to our role.",
    ),
    Check(
        "hidden-rows",
        STOP,
        EACH,
        tables.see_presences(tables.find_hidden_rows),
        "Rows that a policy hides would not be copied; reading the table is an error instead.",
        "Connect as the tables' owner, or as a role with BYPASSRLS.",
    ),
    Check(
        "row-security",
        NOTE,
        MONOLITH,
        tables.see_policies,
        "Policies are not brought over.",
        "Create them on the service before the cutover.",
    ),
    Check(
        "primary-key",
        STOP,
        BOTH,
        tables.see_misfits("primary-key"),
        "Without a primary key that goes over as it is, no change of a row can be followed.",
        "Add one, or map its columns under [tables.columns].",
    ),
    Check(
        "columns",
        STOP,
        BOTH,
        tables.see_misfits("columns"),
        "A column of one side has no partner on the other.",
        "Add it to the service's table, or say under [tables.columns] how it is made.",
    ),
    Check(
        "types",
        STOP,
        BOTH,
        tables.see_misfits("types"),
        "The service's column cannot hold every value of the monolith's with the same meaning.",
        "Change the column's type, or say under [tables.columns] how it is made.",
    ),
    Check(
        "configured-columns",
        STOP,
        BOTH,
        tables.see_configured_columns,
        "The configuration names a column that is not there.",
        "Correct the configuration.",
    ),
    Check(
        "configured-sql",
        STOP,
        MONOLITH,
        tables.see_configured_sql,
        "The configuration holds SQL that the monolith does not accept.",
        "Correct it under [[tables]].",
    ),
    Check(
        "labels",
        STOP,
        BOTH,
        tables.see_labels,
        "The first row with such a label would be refused by the service.",
        "ALTER TYPE ... ADD VALUE on the service.",
    ),
    Check(
        "missing-types",
        WARN,
        MONOLITH,
        tables.see_own_types,
        "The service's tables are still to be created, and a type that they need is not there.",
        "Create the type on the service, or choose another for the column.",
    ),
    Check(
        "extensions",
        WARN,
        MONOLITH,
        tables.see_extensions,
        "Columns, indexes or defaults like the monolith's cannot be made on the service.",
        "CREATE EXTENSION there, or do without on the service.",
    ),
    Check(
        "unlogged",
        STOP,
        EACH,
        tables.see_tables(tables.find_unlogged),
        "A crash empties an unlogged table.",
        "ALTER TABLE ... SET LOGGED.",
    ),
    Check(
        "invalid-indexes",
        STOP,
        SERVICE,
        tables.see_tables(tables.find_invalid_indexes),
        "It could not be taken off for the load and built again as it was.",
        "DROP INDEX and build it again.",
    ),
    Check(
        "rows-on-service",
        STOP,
        SERVICE,
        tables.see_rows,
        "Rows that are not ours are never overwritten or removed, so there will be no copy.",
        "Look at the rows; if nobody needs them, empty the table yourself.",
    ),
    Check(
        "inheritance",
        WARN,
        EACH,
        tables.see_inheritance,
        "A copy takes the rows of a table's children along. What is written to a child's parent, "
        "or to a partitioned table above, reaches the child as well.",
        "Name the table on top, or take the inheritance off.",
    ),
    Check(
        "hypertables",
        WARN,
        EACH,
        tables.see_hypertables,
        "A hypertable refuses some of what a table takes; its rows live in chunks, which come and "
        "go by its own policies.",
        "Pause compression and retention while the migration lasts.",
    ),
    Check(
        "generated-columns",
        NOTE,
        EACH,
        tables.see_tables(
            tables.find_columns("generated", lambda _, generated, __: bool(generated))
        ),
        "They are computed on either side by its own rule, and compared where both have them.",
        "See that the rules are the same.",
    ),
    Check(
        "identity-columns",
        NOTE,
        EACH,
        tables.see_tables(tables.find_columns("identity", lambda identity, _, __: bool(identity))),
        "Numbers are brought as they are; the new owner's sequence goes on after the old one's.",
        "Nothing.",
    ),
    Check(
        "large-objects",
        WARN,
        MONOLITH,
        tables.see_tables(
            tables.find_columns(
                "identifiers of this database's own objects",
                lambda _, __, base: base in {"oid", "lo"} or base.startswith("reg"),
            )
        ),
        "Such a value names something in the monolith's database (a large object, a table), which "
        "does not come along.",
        "Move large objects into bytea columns first, or see that nobody follows the values.",
    ),
    Check(
        "exclusion-constraints",
        WARN,
        SERVICE,
        tables.see_tables(tables.find_exclusions),
        "Rows are written one by one; where two exchange what the constraint keeps apart, a round "
        "is refused and sync stops.",
        "Take it off the service until the cutover.",
    ),
    Check(
        "deferrable-constraints",
        NOTE,
        EACH,
        tables.see_tables(tables.find_deferrable),
        "Our rounds check it at once, not at commit; what exchanges unique values is brought "
        "all the same.",
        "Nothing.",
    ),
    Check(
        "sequences",
        NOTE,
        EACH,
        tables.see_tables(tables.find_sequences),
        "The cutover sets the service's past the monolith's, by a margin.",
        "Nothing.",
    ),
    Check(
        "shared-sequences",
        WARN,
        MONOLITH,
        tables.see_shared_sequences,
        "After the cutover both databases draw numbers, and give the same one twice.",
        "Give the table that stays a sequence of its own.",
    ),
    Check(
        "sequence-limits",
        WARN,
        BOTH,
        _see_sequence_obstacles,
        "The cutover could not set the service's sequence past the monolith's, and would refuse.",
        "Do what the finding says before the cutover.",
    ),
    Check(
        "way-back",
        WARN,
        BOTH,
        _see_way_back,
        "Rows that the service takes could not go back; a cutover refuses to close the way back.",
        "Do what the finding says before the cutover.",
    ),
    Check(
        "narrow-columns",
        NOTE,
        BOTH,
        _see_narrow_columns,
        "After the cutover a value may come that the monolith has no room for.",
        "Widen the monolith's column, or keep the service's as narrow until `cleanup`.",
    ),
    # -------------------------------------------------------------------------- what stands around
    Check(
        "foreign-keys-out",
        WARN,
        EACH,
        neighbours.see_keys_out,
        "On the monolith it ends at the cutover: nobody checks any more that the row referred to "
        "is there. On the service, rows whose parents are not there are refused.",
        "Take it off the service; let the application see to it, and `validate` count orphans.",
    ),
    Check(
        "foreign-keys-in",
        WARN,
        EACH,
        neighbours.see_keys_in,
        "On the monolith, rows of tables that stay refer to rows that will be elsewhere; a row "
        "that the service deletes waits in quarantine while one refers to it.",
        "Bring that table along, or drop the foreign key before the cutover.",
    ),
    Check(
        "foreign-keys-within",
        NOTE,
        EACH,
        neighbours.see_keys_within,
        "It is off on the side that does not own the tables, and comes back with the ownership.",
        "Nothing.",
    ),
    Check(
        "foreign-key-cycles",
        NOTE,
        MONOLITH,
        neighbours.see_cycles,
        "No order of tables brings every parent before its children; rows are brought without "
        "these foreign keys, and checked afterwards.",
        "Nothing.",
    ),
    Check(
        "cascades-out",
        STOP,
        MONOLITH,
        neighbours.see_cascades_out,
        "The family leaves out a table that it writes to: after the cutover nobody does.",
        "Bring that table along, or take the cascade off; `--skip cascades-out` if it is meant.",
    ),
    Check(
        "cascades-in",
        WARN,
        MONOLITH,
        neighbours.see_cascades_in,
        "A table that stays changes or deletes rows of the family: after the cutover nobody does.",
        "Let the application tell the service of it.",
    ),
    Check(
        "triggers-out",
        STOP,
        MONOLITH,
        neighbours.see_triggers_out,
        "The family leaves out a table that its trigger writes to: after the cutover nobody does, "
        "or the service's trigger fails. Read from the function's text, which is a heuristic.",
        "Bring that table along, or change the trigger; `--skip triggers-out` if it is meant.",
    ),
    Check(
        "triggers-in",
        WARN,
        MONOLITH,
        neighbours.see_triggers_in,
        "After the cutover the fence refuses what this trigger writes, and with it the write that "
        "fired it. Read from the function's text, which is a heuristic.",
        "Drop the trigger with the cutover, or let the application tell the service.",
    ),
    Check(
        "triggers-unread",
        NOTE,
        MONOLITH,
        neighbours.see_triggers_unread,
        "What it writes to cannot be told from its text.",
        "Read it yourself, and what it calls.",
    ),
    Check(
        "triggers",
        NOTE,
        MONOLITH,
        neighbours.see_triggers,
        "Triggers fire for the owner alone: those of the service are off until the cutover.",
        "See that the service has those that it needs.",
    ),
    Check(
        "views",
        WARN,
        MONOLITH,
        neighbours.see_views,
        "After the cutover it shows what sync brings back, and `cleanup` cannot drop the tables "
        "under it.",
        "Let its users read from the service, and drop it before `cleanup`.",
    ),
    Check(
        "functions",
        WARN,
        MONOLITH,
        neighbours.see_functions,
        "After the cutover it reads what sync brings back, and its writes are refused. Read from "
        "its text, which is a heuristic.",
        "Let its users turn to the service.",
    ),
    Check(
        "rules",
        WARN,
        MONOLITH,
        neighbours.see_rules,
        "A rule turns a write into something else. What reaches the tables is captured; the "
        "service has no such rule.",
        "Put what it does into the application, or into a trigger.",
    ),
    Check(
        "service-rules",
        STOP,
        SERVICE,
        neighbours.see_rules,
        "It would turn what our rounds write into something else.",
        "Drop it, and put what it does into a trigger.",
    ),
    Check(
        "publications",
        WARN,
        EACH,
        neighbours.see_publications,
        "Who subscribes to the monolith's gets after the cutover what sync brings back, and "
        "nothing after `cleanup`; who subscribes to the service's gets the whole copy.",
        "Let subscribers turn to the service at the cutover.",
    ),
    Check(
        "subscriptions",
        STOP,
        EACH,
        _see_subscriptions,
        "A subscription would stop at the fence, and what its publisher does meanwhile be nowhere.",
        "Migrate from the server that it reads from, or drop it.",
    ),
)
# fmt: on
