"""Row digests: short proofs of what a row holds, computed where the row is.

A digest is taken over the row's image: PostgreSQL's binary wire form of each column with its
type and length, in an order that the map gives. So NULL is not the empty string, no value can
slip into a neighbour, 1.0 is not 1.00, and neither physical column order, time zone, date style,
collation nor server encoding (text is sent in the client's, UTF-8) has a say. Values whose
binary form would hold identifiers of one database (enums, user types) go in as text.

Digests of many rows are put together as a count and wide sums of their two halves; sums of
64-bit integers are exact in PostgreSQL. XOR would let equal rows cancel each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from ordermigrate.model import TableMap, TableName

PARTS = 1024
_NATIVE_HASH = {
    "uuid": "uuid_hash_extended",
    "smallint": "hashint2extended",
    "integer": "hashint4extended",
    "bigint": "hashint8extended",
}


class Algorithm(StrEnum):
    """How an image becomes a digest.

    `record-hash` is PostgreSQL's own 64-bit hash of the image, under two seeds: fast, made for
    hash tables and not against an adversary, and the same only on servers of one byte order.
    """

    MD5 = "md5"
    SHA256 = "sha256"
    RECORD_HASH = "record-hash"


@dataclass(frozen=True, slots=True)
class View:
    """One side of a table map: where to read, and the expressions to read."""

    table: TableName
    alias: str
    where: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[tuple[str, str, str], ...]
    algorithm: Algorithm
    is_same_byte_order: bool

    @property
    def origin(self) -> str:
        """The FROM and WHERE of every query on this side."""
        table, alias = self.table.sql.as_string(None), _identifier(self.alias)
        return f"{table} AS {alias} WHERE ({self.where}\n)"

    @property
    def image(self) -> str:
        """The row's image."""
        return _image([expression for _, expression in self.columns])

    @property
    def key_image(self) -> str:
        """The image of the row's key."""
        return _image([expression for _, expression, _ in self.key])

    @property
    def part(self) -> str:
        """The number of the part that the row's key falls into, the same on both sides."""
        if not self.is_same_byte_order:
            return f"(('x' || left({_hash(self.key_image)}, 8))::bit(32)::bigint & {PARTS - 1})"
        if len(self.key) == 1 and self.key[0][2] in _NATIVE_HASH:
            return f"({_NATIVE_HASH[self.key[0][2]]}({self.key[0][1]}, 0) & {PARTS - 1})"
        return f"(hash_record_extended(ROW({self.key_image}), 0) & {PARTS - 1})"


def _identifier(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _image(expressions: Sequence[str]) -> str:
    return f"record_send(ROW({', '.join(expressions)}))"


def _hash(image: str) -> str:
    # SHA-256, for it can be had on every server, in FIPS mode too.
    return f"encode(sha256({image}), 'hex')"


def source_view(table: TableMap, algorithm: Algorithm, *, is_same_byte_order: bool) -> View:
    """Return the view of the source's side of a table."""
    return View(
        table.source.name,
        table.source.name.name,
        table.where,
        tuple((pair.name, pair.source_compare) for pair in table.pairs if not pair.is_frozen),
        _key(table, {pair.name: pair.source_compare for pair in table.pairs}),
        algorithm,
        is_same_byte_order,
    )


def target_view(table: TableMap, algorithm: Algorithm, *, is_same_byte_order: bool) -> View:
    """Return the view of the target's side of a table."""
    return View(
        table.target.name,
        table.target.name.name,
        table.target_where,
        tuple((pair.name, pair.target_compare) for pair in table.pairs if not pair.is_frozen),
        _key(table, {pair.name: pair.target_compare for pair in table.pairs}),
        algorithm,
        is_same_byte_order,
    )


def _key(table: TableMap, expressions: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    types = {
        column.name: column.type_name if not expressions[column.name].endswith("::text") else "text"
        for column in table.target.columns
        if column.name in expressions
    }
    return tuple((name, expressions[name], types[name]) for name in table.key)


def _halves(view: View) -> tuple[str, str, str]:
    """Return the digest's expression under the name b, and its two halves as bigint."""
    if view.algorithm is Algorithm.RECORD_HASH:
        return (
            f"{view.image} AS b",
            "hash_record_extended(ROW(b), 0)",
            "hash_record_extended(ROW(b), 1)",
        )
    hashed = {
        Algorithm.MD5: f"md5({view.image})",
        Algorithm.SHA256: f"left({_hash(view.image)}, 32)",
    }[view.algorithm]
    return f"('x' || {hashed})::bit(128) AS b", "b::bit(64)::bigint", "(b << 64)::bit(64)::bigint"


def text_digest(view: View) -> str:
    """Return the expression for one row's digest as text, by the view's algorithm."""
    if view.algorithm is Algorithm.MD5:
        return f"md5({view.image})"
    return _hash(view.image)


def parts_query(view: View) -> str:
    """Return the one pass over a table: per part, the count and the sums of both halves.

    OFFSET 0 keeps the planner from pulling the digest up and computing it for each half, and from
    taking the parts for as many groups as there are keys.
    """
    digest, high, low = _halves(view)
    return (
        f"SELECT part, count(*) AS rows, sum({high})::text AS high, sum({low})::text AS low "  # noqa: S608
        f"FROM (SELECT {view.part}::integer AS part, {digest} FROM {view.origin} OFFSET 0) AS i "
        "GROUP BY part"
    )


def rows_query(view: View) -> str:
    """Return the rows of some parts (`$1`), as key image, key as text, and both halves, by key."""
    digest, high, low = _halves(view)
    texts = ", ".join(f"({expression})::text" for _, expression, _ in view.key)
    return (
        f"SELECT key_image, key_texts, {high} AS high, {low} AS low FROM ("  # noqa: S608
        f"SELECT {view.key_image} AS key_image, ARRAY[{texts}] AS key_texts, {digest} "
        f"FROM {view.origin} AND {view.part} = ANY($1::bigint[]) OFFSET 0) AS image "
        "ORDER BY key_image, high, low"
    )


def columns_query(view: View) -> str:
    """Return every column's text and image for some keys: `$1`… one text array per key column."""
    texts = ", ".join(f"({expression})::text" for _, expression in view.columns)
    images = ", ".join(_hash(_image([expression])) for _, expression in view.columns)
    keys = ", ".join(f"({expression})::text" for _, expression, _ in view.key)
    left = ", ".join(expression for _, expression, _ in view.key)
    names = ", ".join(f"k{number}" for number in range(1, len(view.key) + 1))
    arrays = ", ".join(f"${number}::text[]" for number in range(1, len(view.key) + 1))
    wanted = ", ".join(
        f"wanted.k{number}::{type_name}" for number, (_, _, type_name) in enumerate(view.key, 1)
    )
    return (
        f"SELECT ARRAY[{keys}] AS key_texts, ARRAY[{texts}] AS texts, ARRAY[{images}] AS images "  # noqa: S608
        f"FROM {view.origin} AND ({left}) IN (SELECT {wanted} FROM unnest({arrays}) "
        f"AS wanted ({names}))"
    )
