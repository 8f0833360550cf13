"""What `--json` prints, command by command, as JSON Schema.

The one place where it is written down: `generate.py` writes docs/schemas and a page from it, and
a test holds it against what the commands print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def text(description: str, *values: str) -> Schema:
    """Return the schema of a string, one of `values` if there are any."""
    return {"type": "string", "description": description, **({"enum": [*values]} if values else {})}


def number(description: str) -> Schema:
    """Return the schema of a number."""
    return {"type": "number", "description": description}


def count(description: str) -> Schema:
    """Return the schema of a whole number from 0 on."""
    return {"type": "integer", "minimum": 0, "description": description}


def boolean(description: str) -> Schema:
    """Return the schema of a truth value."""
    return {"type": "boolean", "description": description}


def or_null(schema: Schema) -> Schema:
    """Return the schema of the same value, or null."""
    found = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        found["enum"] = [*schema["enum"], None]
    return found


def listing(description: str, items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "description": description, "items": items}


def fields(description: str, properties: Mapping[str, Schema]) -> Schema:
    """Return the schema of an object that has all of these keys; more may come."""
    return {
        "type": "object",
        "description": description,
        "required": [*properties],
        "properties": {**properties},
    }


def mapping(description: str, values: Schema) -> Schema:
    """Return the schema of an object whose keys are names."""
    return {"type": "object", "description": description, "additionalProperties": values}


_NAMES = {
    "name": text("The table on the monolith."),
    "to": text("The table on the service."),
}
_DATABASE = {
    "database": text("Its name."),
    "server_version": text("Of its server, such as 17.10."),
    "encoding": text("Of the database."),
}
_CHECK = fields(
    "One question and its answer.",
    {
        "name": text("What was looked at, such as `row checksums`."),
        "outcome": text(
            "`attention` is worth a look but no difference; `skipped` was not asked.",
            *("equal", "different", "attention", "skipped"),
        ),
        "summary": text("The answer as a sentence."),
        "details": listing("The figures behind it.", {"type": "object"}),
        "seconds": number("How long it took."),
    },
)
_DIFFERENCE = fields(
    "One row that is not the same on both sides.",
    {
        "key": mapping("Its primary key, by column, as text.", {"type": ["string", "null"]}),
        "kind": text(
            "Missing on the side that is not the owner, extra there, or changed.",
            *("missing", "extra", "changed"),
        ),
        "columns": mapping(
            "Every column that differs. Values as text; null is NULL, or no such row.",
            fields(
                "Both values.",
                {
                    "source": or_null(text("On the owner's side.")),
                    "target": or_null(text("On the other.")),
                },
            ),
        ),
    },
)
_TRAFFIC = {
    "monolith": or_null(count("By the monolith's.")),
    "service": or_null(count("By the service's; another one where a step was cut off.")),
}
_STEPS = listing("What was done, or with --dry-run would be done.", {"type": "string"})
_QUARANTINED = fields(
    "A change that is kept beside the table.",
    {
        "table": text("Its name on the side that refuses it."),
        "key": mapping("The primary key, by column, as text.", {"type": "string"}),
        "kind": text("What was refused.", "write", "delete"),
        "reason": text("What the server said."),
        "constraint": or_null(text("The constraint, where there is one.")),
        "row": or_null(mapping("What was to be written, as text.", {"type": ["string", "null"]})),
        "quarantined_at": text("ISO 8601."),
        "tries": count("How often it was tried."),
    },
)
_CHANGE_OUTCOMES = {
    "done": "the other side owns the tables",
    "already_done": "it owned them before",
    "finished": "an earlier change that was cut off half-way is finished",
    "aborted": "it is undone (--abort)",
    "nothing_to_abort": "there was none (--abort)",
    "fenced": "a side that took writes without owning the tables is fenced off again",
    "planned": "nothing was done: --dry-run",
}
_CHANGE: Mapping[str, Schema] = {
    "pause_seconds": or_null(
        number("For how long no side took a write, at most; null where that is not known.")
    ),
    "gates": listing(
        "What has to be so before the owner changes.",
        fields(
            "A gate.",
            {
                "name": text("Its name."),
                "is_open": boolean("Whether it is so."),
                "said": text("What was found."),
            },
        ),
    ),
    "timings": listing(
        "What could be timed without stopping anyone (--dry-run).",
        fields("A part.", {"name": text("What was timed."), "seconds": number("The median.")}),
    ),
    "steps_taken": _STEPS,
    "notes": listing("What one should know beside that.", {"type": "string"}),
    "quarantined_rows": count("Rows that the monolith refuses (exit code 9 where there are any)."),
}

_SIDE = text("Where; null where it is about both at once.", "monolith", "service")
_FINDING = fields(
    "A finding.",
    {
        "key": text("Of its kind; see Findings of preflight."),
        "severity": text("How grave it is.", "stop", "warn", "note"),
        "side": or_null(_SIDE),
        "said": text("What is true, with names."),
        "meaning": text("What it means for the migration."),
        "todo": text("What to do about it."),
    },
)

# Per command: its outcomes with what they mean, its tables, its own keys.
COMMANDS: Mapping[str, tuple[Mapping[str, str], Mapping[str, Schema], Mapping[str, Schema]]] = {
    "preflight": (
        {
            "clear": "nothing was found but what is good to know",
            "warned": "somebody has to decide about something, at the latest before the cutover",
            "stopped": "something stands in the way (exit code 3)",
        },
        {
            **_NAMES,
            "rows_estimate": or_null(count("Rows by the statistics; null where it is not there.")),
            "bytes": or_null(count("On the monolith's disk, with indexes and parts.")),
        },
        {
            "counts": fields(
                "How many findings there are.",
                {
                    "stop": count("What stands in the way."),
                    "warn": count("What somebody has to decide about."),
                    "note": count("What is good to know."),
                },
            ),
            "findings": listing("All of them, the gravest first.", _FINDING),
            "unchecked": listing(
                "Checks that could not run: neither findings nor passed.",
                fields(
                    "A check.",
                    {
                        "key": text("Its key."),
                        "side": or_null(_SIDE),
                        "reason": text("Why it could not run."),
                    },
                ),
            ),
            "skipped": listing("Keys that --skip left out.", {"type": "string"}),
            "copy_seconds_estimate": or_null(
                fields(
                    "How long the copy may take, reckoned from the size alone.",
                    {"low": number("On fast servers."), "high": number("On slow ones.")},
                )
            ),
        },
    ),
    "schema": (
        {
            "printed": "the DDL is derived",
            "applied": "the service's tables are created by it",
            "already_there": "they were there before; nothing was done",
            "planned": "nothing was done: --dry-run",
            "equal": "both sides are the same: --diff",
            "harmless": "they are not, and nothing is stopped by that: --diff",
            "different": "something stops a migration, or may (exit code 4): --diff",
            "complete": "every object is there: --verify",
            "incomplete": "at least one is not (exit code 4): --verify",
        },
        _NAMES,
        {
            "sql": or_null(text("The service's DDL, where it was derived.")),
            "steps_taken": _STEPS,
            "notes": listing("What one should know beside that.", {"type": "string"}),
            "differences": listing(
                "What is not the same on both sides, what stops something first; by --diff.",
                fields(
                    "One of them; null for a side that does not have it.",
                    {
                        "table": text("The table on the monolith; may be empty."),
                        "kind": text("What it is about, such as `column` or `index`."),
                        "name": text("Its name; may be empty."),
                        "weight": text(
                            "What it does to copy and sync.", "stops", "may_stop", "harmless"
                        ),
                        "monolith": or_null(text("What is there.")),
                        "service": or_null(text("What is there.")),
                        "meaning": text("What it means for copy, sync and validate."),
                    },
                ),
            ),
            "objects": listing(
                "What was looked for; by --verify.",
                fields(
                    "One of the list.",
                    {
                        "object": text("The line, such as `table public.orders`."),
                        "is_there": boolean("Whether the service has it."),
                    },
                ),
            ),
        },
    ),
    "prepare": (
        {
            "prepared": "done",
            "already_prepared": "it was done before",
            "planned": "nothing was done: --dry-run",
        },
        _NAMES,
        {"steps_taken": _STEPS},
    ),
    "copy": (
        {
            "copied": "done",
            "already_copied": "it was done before",
            "planned": "nothing was done: --dry-run",
        },
        {
            **_NAMES,
            "rows": count("Rows that the copy has brought."),
            "bytes": count("Bytes that went over the network for them."),
        },
        {
            "seconds": number("How long it took."),
            "steps_taken": _STEPS,
        },
    ),
    "sync": (
        {
            "caught_up": "nothing was waiting when it ended",
            "behind": "something was: --once",
            "stopped": "something was when it was told to end",
        },
        _NAMES,
        {
            "rounds": count("Rounds applied by this command."),
            "changes": count("Change log entries that they took."),
            "written": count("Rows inserted or updated on the service."),
            "deleted": count("Rows deleted there."),
            "seconds": number("How long it ran."),
        },
    ),
    "cutover": (_CHANGE_OUTCOMES, _NAMES, _CHANGE),
    "rollback": (
        {
            **_CHANGE_OUTCOMES,
            "resolved": "nothing is in quarantine any more (--retry-quarantine)",
            "quarantined": "something still is (exit code 9)",
            "nothing_to_retry": "nothing was",
        },
        _NAMES,
        _CHANGE,
    ),
    "cleanup": (
        {
            "cleaned": "the monolith's tables and every trace are gone",
            "renamed": "the tables are backed up and renamed; the drop has to wait",
            "undone": "the tables have their names back: --undo",
            "nothing_to_do": "there is no migration, or with --undo no cleanup of it",
            "planned": "nothing was done: --dry-run",
        },
        _NAMES,
        {
            "steps_taken": _STEPS,
            "backup": or_null(text("The file that the monolith's tables are in.")),
            "drop_after": or_null(
                text("When the renamed tables may be dropped; null where they need not wait.")
            ),
        },
    ),
    "cancel": (
        {
            "cancelled": "every trace is gone",
            "nothing_to_cancel": "there is no migration",
            "planned": "nothing was done: --dry-run",
        },
        _NAMES,
        {"steps_taken": _STEPS},
    ),
    "validate": (
        {"equal": "no check found a difference", "different": "at least one did (exit code 4)"},
        {
            **_NAMES,
            "rows": count("Rows on the service."),
            "source_rows": count("Rows on the owner's side."),
            "target_rows": count("Rows on the other."),
            "outcome": text("Of this table.", "equal", "different"),
            "checks": listing("In the order in which they were made.", _CHECK),
            "differences": listing("The first rows that differ (--max-differences).", _DIFFERENCE),
            "differences_total": count("How many rows differ in all."),
            "notes": listing("What one should know beside that.", {"type": "string"}),
        },
        {
            "algorithm": or_null(text("How rows were hashed; null without --checksums.")),
            "seconds": number("How long it took."),
            "validation": or_null(
                {"type": "integer", "description": "Its number in the ledger; null without one."}
            ),
            "repaired_rows": count("Rows that --repair applied again before this verdict."),
            "notes": listing("What one should know beside that.", {"type": "string"}),
        },
    ),
    "traffic": (
        {
            "shown": "nothing was asked for but to see it",
            "set": "done",
            "unchanged": "it was so before",
        },
        _NAMES,
        {
            "percentage": count(
                "How many users of a hundred read from the service, by the monolith's word: it is "
                "changed last on the way up and first on the way down."
            ),
            "traffic": fields("By each database's word; null: never set.", _TRAFFIC),
            "reason": or_null(text("Why it is so.")),
            "changed_at": or_null(text("Since when, ISO 8601.")),
            "is_syncing": boolean("Whether a sync is at work, which holds reads back if need be."),
            "notes": listing("What one should know beside that.", {"type": "string"}),
        },
    ),
    "status": (
        {"ok": "both databases have answered"},
        {
            **_NAMES,
            "target": text("The same as `to`."),
            "rows": count("The same as `copied_rows`."),
            "copied_rows": count("Rows that the copy has brought; those of sync are not counted."),
            "copied_bytes": count("Bytes that went over the network for them."),
            "total_rows_estimate": count("How many there are to copy, by the statistics."),
            "chunks": count("Chunks planned."),
            "chunks_copied": count("Chunks committed on the service."),
        },
        {
            "alarm": or_null(
                text(
                    "Said where not just one side owns the tables, with the command that mends it."
                )
            ),
            "quarantine": listing(
                "Rows of the service that the monolith refuses; the oldest hundred.", _QUARANTINED
            ),
            "epoch": count("How many times an owner has let go, or taken the tables back."),
            "phase_meaning": text("The phase as a sentence."),
            "phase_since": or_null(text("When it began, ISO 8601.")),
            "copied_rows": count("The sum over the tables."),
            "total_rows_estimate": count("The sum over the tables."),
            "backlog": or_null(
                count("Change log entries still to be applied; null before there are logs.")
            ),
            "lag_seconds": or_null(number("The age of the oldest of them, by the owner's clock.")),
            "is_syncing": or_null(boolean("Whether a sync is at work now.")),
            "last_round": or_null(
                fields(
                    "The newest round.",
                    {
                        "round": count("Its number."),
                        "changes": count("Change log entries that it took."),
                        "written": count("Rows inserted or updated."),
                        "deleted": count("Rows deleted."),
                        "is_complete": boolean("Whether nothing was left in the logs."),
                        "seconds": number("How long it took."),
                        "age_seconds": number("How long ago it was applied."),
                        "rounds_per_second": number("Over the last minute."),
                    },
                )
            ),
            "fences": or_null(
                mapping(
                    "Per side, whether it refuses application writes: on, off or partial.",
                    {"type": "string", "enum": ["on", "off", "partial"]},
                )
            ),
            "refused_writes": or_null(count("How many statements the fence has refused.")),
            "capture_gaps": listing(
                "Capture triggers that are missing or off: writes go unnoticed.", {"type": "string"}
            ),
            "checklist": {
                "type": "null",
                "description": "What is done of the migration. Not measured by this version.",
            },
            "monolith": fields("The monolith's database.", _DATABASE),
            "service": fields("The service's database.", _DATABASE),
            "last_validation": or_null(
                fields(
                    "The newest validation on record.",
                    {
                        "verdict": text("What it found.", "equal", "different"),
                        "algorithm": or_null(text("How rows were hashed, if they were.")),
                        "finished_at": text("ISO 8601."),
                        "age_seconds": number("How long ago that is."),
                        "seconds": number("How long it took."),
                        "is_void": boolean("Whether it proves nothing any more."),
                        "void_because": or_null(text("Why, if so.")),
                    },
                )
            ),
            "traffic": or_null(
                fields(
                    "How many users of a hundred read from the service, by each database's word; "
                    "null where that was never set.",
                    _TRAFFIC,
                )
            ),
            "objects_off": listing(
                "Indexes, triggers and constraints of the service, and of the monolith while it is "
                "not the owner, that are off for now.",
                {"type": "string"},
            ),
        },
    ),
}


def common(outcome: Schema, tables: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the keys that every document has."""
    return {
        "schema": {"const": 1, "description": "Of this layout; another number, another layout."},
        "run": or_null(text("The migration's id; null where there is none yet.")),
        "command": or_null(text("The command that printed it.")),
        "outcome": outcome,
        "exit_code": count("The same as the process's."),
        "phase": or_null(text("How far the migration is.")),
        "owner": or_null(
            text("Which side accepts the application's writes.", "monolith", "service", "none")
        ),
        "tables": listing("The family.", fields("One table.", tables)),
        "next_steps": listing(
            "What would be sensible now; never a command that destroys something.",
            fields("A step.", {"command": text("To be typed."), "reason": text("Why.")}),
        ),
    }


def schemas() -> dict[str, Schema]:
    """Return the schema of each command's document, and of the one that tells of an error."""
    found = {
        name: {
            "$schema": DIALECT,
            "title": f"ordermigrate {name} --json",
            **fields(
                "Printed on stdout, alone.",
                {**common(text("What came of it.", *outcomes), tables), **own},
            ),
        }
        for name, (outcomes, tables, own) in COMMANDS.items()
    }
    found["error"] = {
        "$schema": DIALECT,
        "title": "Any command with --json that ends in an error",
        **fields(
            "Printed on stdout, alone; the same message is on stderr.",
            {
                **common(
                    text(
                        "What kind of error it is.",
                        *("bug", "usage", "refused", "unavailable", "busy", "undone"),
                        *("stranded", "interrupted"),
                    ),
                    {},
                ),
                "message": text("What is true, what was wanted, what to do."),
                "findings": listing("Each reason by itself, of a refusal.", {"type": "string"}),
            },
        ),
    }
    return found
