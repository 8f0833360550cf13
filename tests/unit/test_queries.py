"""The program's SQL: every file parses, what is used exists, and what exists is used."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from ordermigrate import queries

PACKAGE = Path(queries.__file__).parent
FILES = sorted((PACKAGE / "sql").glob("*.sql"))
MODULES = {path.stem for path in FILES}

ONE = """-- name: find_one
-- What it does.
-- $1: a number.
SELECT $1::integer AS one;  -- stays

-- name: find_two
SELECT 2;
"""


def test_a_file_is_split_into_blocks_without_their_comments_and_semicolons() -> None:
    blocks = queries.parse_blocks(ONE)
    assert list(blocks) == ["find_one", "find_two"]
    assert blocks["find_one"] == "SELECT $1::integer AS one;  -- stays"
    assert blocks["find_two"] == "SELECT 2"


def test_text_before_the_first_block_is_nobodys() -> None:
    assert queries.parse_blocks("-- licence\n\n-- name: a\nSELECT 1;\n") == {"a": "SELECT 1"}
    assert queries.parse_blocks("") == {}


def test_two_blocks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two blocks are named a"):
        queries.parse_blocks("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n")


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
BODIES = st.from_regex(r"SELECT [a-z0-9 ,\n]{0,20}[a-z0-9]", fullmatch=True)


@given(st.dictionaries(NAMES, BODIES))
def test_what_is_written_as_blocks_is_read_as_blocks(blocks: dict[str, str]) -> None:
    text = "\n".join(f"-- name: {name}\n-- A comment.\n{body};\n" for name, body in blocks.items())
    assert queries.parse_blocks(text) == blocks


def test_a_blocks_identifiers_are_quoted_whatever_they_are() -> None:
    name = sql.Identifier('we"ird', "100% {x}")
    assert queries.compose("ledger", "is_empty", table=name) == (
        'SELECT NOT EXISTS (SELECT FROM "we""ird"."100% {x}") AS is_empty'
    )


def bare(body: str) -> str:
    """Return a statement without its comments, its texts and the bodies of functions."""
    no_bodies = re.sub(r"(\$\w*\$).*?\1", "", body, flags=re.DOTALL)
    no_comments = re.sub(r"--.*", "", no_bodies)
    return re.sub(r"'(?:[^']|'')*'", "''", no_comments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_block_is_one_statement_with_a_sentence_on_what_it_does(path: Path) -> None:
    text = path.read_text("utf-8")
    blocks = queries.load_blocks(path.stem)
    assert blocks
    for name, body in blocks.items():
        about = text.partition(f"-- name: {name}\n")[2].splitlines()[0]
        assert about.startswith("-- "), f"{path.stem}.{name} does not say what it does"
        assert body, f"{path.stem}.{name} is empty"
        assert ";" not in bare(body), f"{path.stem}.{name} is more than one statement"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_parameter_of_a_block_is_explained_and_typed(path: Path) -> None:
    text = path.read_text("utf-8")
    for name, body in queries.load_blocks(path.stem).items():
        raw = text.partition(f"-- name: {name}\n")[2].partition("-- name: ")[0]
        comment = "\n".join(line for line in raw.splitlines() if line.startswith("--"))
        for number in range(1, 10):
            if f"${number}" in body:
                assert f"${number}" in comment, f"{path.stem}.{name} does not explain ${number}"
                assert f"${number}::" in body, f"{path.stem}.{name} does not type ${number}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_files_stem_is_that_of_the_module_that_owns_it(path: Path) -> None:
    stems = {module.stem for module in PACKAGE.rglob("*.py")}
    assert path.stem in stems


def calls() -> Iterator[tuple[str, str]]:
    """Yield module and block of every place in the code that names both, one after the other."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            texts = [
                arg.value if isinstance(arg, ast.Constant) and isinstance(arg.value, str) else None
                for arg in node.args
            ]
            for module, block in itertools.pairwise(texts):
                if module in MODULES and block:
                    yield module, block


def words() -> set[str]:
    """Return every string in the code; a block's name may be chosen some lines before its use."""
    return {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_block_that_the_code_names_exists() -> None:
    named = list(calls())
    assert len(named) > 40
    missing = {f"{mod}.{name}" for mod, name in named if name not in queries.load_blocks(mod)}
    assert not missing


def test_every_block_is_used() -> None:
    used = words()
    # Their names are put together from two words: capture.py and parents.py say which.
    chosen = {f"create_{what}_trigger" for what in ("row", "truncate")}
    chosen |= {f"create_log_{what}" for what in ("row", "truncate")}
    chosen |= {f"watch_{what}" for what in ("row", "update", "truncate")}
    idle = {
        f"{module}.{name}"
        for module in MODULES
        for name in queries.load_blocks(module)
        if name not in used | chosen
    }
    assert not idle
