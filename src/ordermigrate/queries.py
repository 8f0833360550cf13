"""The program's SQL, kept in sql/<module>.sql as named blocks.

A block begins with `-- name: verb_noun`; the comment lines after it say what it does and what
each `$1` is; one statement follows. Values stay native parameters. Identifiers are written as
`{name}` and filled in by `psycopg.sql`, so a literal brace is written twice.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from psycopg import sql

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)$", re.MULTILINE)
_DOLLAR_QUOTES = re.compile(r"\$[a-z]+\$")


@cache
def load_blocks(module: str) -> dict[str, str]:
    """Return the blocks of `sql/<module>.sql`, by name, without their comment lines.

    Raises:
        ValueError: A name occurs twice.

    """
    text = (resources.files("ordermigrate") / "sql" / f"{module}.sql").read_text("utf-8")
    return parse_blocks(text)


def parse_blocks(text: str) -> dict[str, str]:
    """Split `text` into its named blocks (see the module's docstring)."""
    pieces = _NAME.split(text)[1:]
    blocks: dict[str, str] = {}
    for name, body in zip(pieces[::2], pieces[1::2], strict=True):
        if name in blocks:
            message = f"two blocks are named {name}"
            raise ValueError(message)
        lines = body.strip("\n").splitlines()
        while lines and lines[0].startswith("--"):
            lines.pop(0)
        blocks[name] = "\n".join(lines).strip().removesuffix(";")
    return blocks


def get(module: str, name: str) -> str:
    """Return the text of one block."""
    return load_blocks(module)[name]


def compose(module: str, name: str, /, **parts: sql.Composable) -> str:
    """Return the text of one block with its `{identifiers}` filled in.

    A body in dollar quotes gets others where a name in it holds them: it would end there.
    """
    text = get(module, name)
    for quotes in set(_DOLLAR_QUOTES.findall(text)):
        free = quotes
        while any(free in part.as_string(None) for part in parts.values()):
            free = f"{free[:-1]}_$"
        text = text.replace(quotes, free)
    return sql.SQL(text).format(**parts).as_string(None)
