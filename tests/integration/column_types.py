"""Every type that a column can have, with values that are easily got wrong.

PostgreSQL's own, those that people make of them, and arrays of both. A value is the text that the
type reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psycopg import sql

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "boolean": ("t", "f"),
    '"char"': ("a", "", " ", "\\"),
    "name": ("a name", "", "x" * 63),
    "text": ("", " ", "a", "A", "NULL", "\\N", "a\tb\nc\r", "é\U0001f600", "'; --", '{",}', "\\."),
    "character varying": ("", "\uff41", "trailing  "),
    "character varying(7)": ("", "sevenéé", "a "),
    "character(5)": ("", "a", "a b", "ééééé"),
    "character": ("x", ""),
    "bytea": ("", "\\x00", "\\x00ff5c6e", "\\x0a0d2c22"),
    "smallint": ("0", "-32768", "32767"),
    "integer": ("0", "-1", "-2147483648", "2147483647"),
    "bigint": ("0", "-9223372036854775808", "9223372036854775807"),
    "numeric": ("0", "1", "1.0", "1.00", "-0.5", "NaN", "Infinity", "-Infinity", "1e-30", "1e90"),
    "numeric(12,4)": ("0", "1.5", "-99999999.9999", "NaN"),
    "real": ("0", "-0", "0.1", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38"),
    "double precision": ("0", "-0", "0.1", "NaN", "-Infinity", "5e-324", "1.0000000000000002"),
    "money": ("0", "12.34", "-0.01", "92233720368547758.07"),
    "oid": ("0", "1", "4294967295"),
    "xid": ("3", "4294967295"),
    "xid8": ("3", "18446744073709551615"),
    "cid": ("0", "4294967295"),
    "tid": ("(0,1)", "(4294967295,65535)"),
    "int2vector": ("", "1 -2 3"),
    "oidvector": ("", "1 4294967295"),
    "regproc": ("pg_catalog.now", "-"),
    "regprocedure": ("pg_catalog.lower(text)", "-"),
    "regoper": ("pg_catalog.||/", "0"),
    "regoperator": ("pg_catalog.+(integer,integer)", "0"),
    "regclass": ("pg_catalog.pg_class", 'public."Else"', "-"),
    "regtype": ("integer", "text[]", "public.mood", "-"),
    "regrole": ("pg_monitor", "-"),
    "regnamespace": ("pg_catalog", "public", "-"),
    "regconfig": ("simple", "english"),
    "regdictionary": ("simple", "english_stem"),
    "regcollation": ('"C"', "-"),
    "date": ("2024-02-29", "infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"),
    "time": ("00:00", "24:00", "00:00:00.000001"),
    "time with time zone": ("12:00+05:30", "24:00-15:59:59", "10:00+00", "12:00+02"),
    "timestamp": ("2024-03-31 02:30", "infinity", "-infinity", "4713-01-01 00:00:00 BC"),
    "timestamp(0)": ("2024-12-31 23:59:59.6", "1999-01-01"),
    "timestamp with time zone": (
        *("2025-03-30 01:30+01", "infinity", "-infinity", "0044-03-15 12:00:00+00 BC"),
        "294276-12-31 23:59:59.999999+00",
    ),
    "interval": (
        *("0", "1 mon", "30 days", "720:00:00", "-1 year -2 mons +3 days -04:05:06.000007"),
        *("178956970 years", "-178956970 years"),
    ),
    "interval day to second(3)": ("1 day 00:00:00.001", "-24:00:00"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
    "inet": ("10.0.0.1/8", "10.0.0.1", "0.0.0.0/0", "::1", "::ffff:1.2.3.4/96"),
    "cidr": ("10.0.0.0/8", "::/0", "10.1.2.3/32"),
    "macaddr": ("08:00:2b:01:02:03", "00:00:00:00:00:00"),
    "macaddr8": ("08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"),
    "bit(3)": ("101", "000"),
    "bit varying": ("", "0", "00", "1" * 65),
    "bit varying(9)": ("", "101010101"),
    "point": ("(0.1,-0)", "(NaN,Infinity)", "(0,0)"),
    "line": ("{1,-1,0}", "{0,-1,1e300}"),
    "lseg": ("[(0,0),(1,1)]", "[(1,1),(0,0)]"),
    "box": ("(1,1),(0,0)", "(0.3,0.1),(-0,-0)"),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1))", "[(0,0)]"),
    "polygon": ("((0,0),(1,1),(1,0))", "((1,1),(1,0),(0,0))"),
    "circle": ("<(0,0),2>", "<(0,0),0>"),
    "tsvector": ("", "fat:1A cat:2", "'it''s':3 ' '"),
    "tsquery": ("", "fat & !cat:*A", "'it''s' <2> b"),
    "json": ('{"b": 1,  "a": 1.00, "b": 2}', "null", '"\\u00e9"', "[ ]"),
    "jsonb": ('{"b": 1.00, "a": [null, "é"]}', '{"b": 1.0, "a": [null, "é"]}', "null", "{}", "1"),
    "jsonpath": ("$", '$."a b"[*] ? (@ > 1)', "strict $.a"),
    "txid_snapshot": ("10:20:10,14", "1:1:"),
    "pg_snapshot": ("10:20:10,14", "1:1:"),
    "pg_lsn": ("0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"),
    "refcursor": ("a cursor", ""),
    "aclitem": ("=r/pg_monitor", "pg_monitor=r*w/pg_monitor"),
    "int4range": ("[1,5)", "[1,4]", "empty", "(,)"),
    "int8range": ("[1,)", "(,-5)"),
    "numrange": ("[1.0,2.00)", "[1,2)", "(,NaN]", "empty"),
    "tsrange": ("[2024-01-01,infinity]", "(,)"),
    "tstzrange": ("[2024-01-01 00:00+00,2024-01-01 01:00+01]", "[-infinity,)"),
    "daterange": ("[2024-02-28,2024-02-29]", "empty"),
    "int4multirange": ("{}", "{[1,2),[5,)}", "{[1,1],[5,5]}"),
    "int8multirange": ("{}", "{(,)}"),
    "nummultirange": ("{[1.0,2.00],[5,6]}", "{[1,2],[5.0,6]}"),
    "tsmultirange": ("{}", "{[2024-01-01,infinity]}"),
    "tstzmultirange": ("{[2024-01-01 00:00+00,)}", "{}"),
    "datemultirange": ("{[2024-02-28,2024-02-29],(,2000-01-01)}", "{}"),
}
XML = "xml"
XML_VALUES = ('<a b="1">é</a>', "text & <b/>".replace("&", "&amp;"), "")
# What no column is made of: the server writes them itself, and reads none from anybody.
LEFT_OUT = frozenset(
    {
        "pg_node_tree",
        "pg_ndistinct",
        "pg_dependencies",
        "pg_mcv_list",
        "pg_brin_bloom_summary",
        "pg_brin_minmax_multi_summary",
        "gtsvector",
    }
)
OWN: Mapping[str, tuple[str, ...]] = {
    "public.mood": ("sad", "ok", 'so "so"', "é"),
    'public."Odd Domain"': ("1", "0.00000001"),
    "public.words": ("{}", '{"a,b",NULL,""}', "{{a},{b}}"),
    "public.shade": ("sad", "é"),
    "public.pair": ('(1,"a,""b""",sad)', "(,,)", '(-1,"","so ""so""")'),
    "public.nest": ('("(1,a,ok)","{1.0,NULL}")', "(,)", '("(1,a,ok)","{1,NULL}")'),
    "public.checked_pair": ("(1,a,ok)", "(0,,)"),
    "public.span": ("[0.1,0.3)", "[-0,0]", "[0,0]", "empty", "(,)"),
    "public.span_multirange": ("{}", "{[0.1,0.3),[1,)}"),
}
LABELS = ("sad", "ok", 'so "so"', "é")
MAKE_OWN = """
CREATE TABLE public."Else" (a integer);
CREATE TYPE public.mood AS ENUM ({labels});
CREATE DOMAIN public."Odd Domain" AS numeric(18,8) CHECK (VALUE > 0);
CREATE DOMAIN public.words AS text[];
CREATE DOMAIN public.shade AS public.mood;
CREATE TYPE public.pair AS (a integer, "B b" text, c public.mood);
CREATE TYPE public.nest AS (p public.pair, x numeric[]);
CREATE DOMAIN public.checked_pair AS public.pair CHECK ((VALUE).a >= 0);
CREATE TYPE public.span AS RANGE (subtype = float8);
"""
# Their values have no order, so nothing is a key of them.
_NOT_IN_KEYS = frozenset(
    {
        "xid",
        "cid",
        "int2vector",
        "point",
        "line",
        "lseg",
        "box",
        "path",
        "polygon",
        "circle",
        "json",
        "jsonpath",
        "txid_snapshot",
        "pg_snapshot",
        "aclitem",
        "xml",
        "refcursor",
    }
)
# ARRAY[...] of these is an array of more dimensions.
_ARRAYS_ALREADY = frozenset({"int2vector", "oidvector", "public.words"})
_NOT_HASHED = ("money", "bit", "tsvector", "tsquery")


@dataclass(frozen=True)
class Kind:
    """A type and values of it, as SQL."""

    name: str
    values: tuple[str, ...] = field(repr=False)

    @property
    def is_key(self) -> bool:
        """Whether a primary key may be of it."""
        return self.name.removesuffix("[]") not in _NOT_IN_KEYS

    @property
    def is_hashed(self) -> bool:
        """Whether a table may be partitioned by hash of it."""
        return self.is_key and not self.name.startswith(_NOT_HASHED)

    @property
    def is_referred_to(self) -> bool:
        """Whether a foreign key may point at it: PostgreSQL fails to check one of arrays."""
        return not self.name.endswith("[]") and self.name not in _ARRAYS_ALREADY

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of PostgreSQL's own."""
        return not self.name.startswith("public.")


def quote(text: str) -> str:
    """Return a string as SQL writes it."""
    return sql.Literal(text).as_string(None)


def make_own(*, is_reversed: bool) -> str:
    """Return the script that makes the types of our own; the other way round, other OIDs too."""
    labels = LABELS[::-1] if is_reversed else LABELS
    before = "CREATE TYPE public.first AS ENUM ('x', 'y', 'z');" if is_reversed else ""
    return before + MAKE_OWN.format(labels=", ".join(map(quote, labels)))


def list_kinds(*, has_xml: bool) -> list[Kind]:
    """Return all types, and arrays of them."""
    plain = {**BUILT_IN, **OWN} | ({XML: XML_VALUES} if has_xml else {})
    kinds: list[Kind] = []
    for name, texts in plain.items():
        values = tuple(f"{quote(text)}::{name}" for text in texts)
        kinds.append(Kind(name, values))
        if name in _ARRAYS_ALREADY:
            continue
        arrays = (
            "'{}'",
            f"ARRAY[{values[0]}, NULL, {values[-1]}]",
            f"ARRAY[[{values[0]}], [{values[-1]}]]",
        )
        kinds.append(Kind(f"{name}[]", tuple(f"{array}::{name}[]" for array in arrays)))
    return kinds
