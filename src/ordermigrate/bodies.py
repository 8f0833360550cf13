"""What functions write to, as far as their text tells.

A heuristic, and said as such wherever it is used: it finds INSERT, UPDATE, DELETE, TRUNCATE and
MERGE by name, also in functions that are called, and also inside the text of a statement that is
put together. It can be wrong both ways: a name that is put together as well is not seen, and a
statement that is never reached is. Only what is the name of an existing relation counts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

_NAME = r'(?:"(?:[^"]|"")+"|[A-Za-z_\x80-\U0010ffff][\w$]*)'
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_WRITE = re.compile(
    r"\b(?:insert\s+into|merge\s+into|update|delete\s+from|truncate(?:\s+table)?)\s+"
    rf"(?:only\s+)?((?:{_NAME}\s*\.\s*)?{_NAME})",
    re.IGNORECASE,
)
_CALL = re.compile(rf"(?<![\w$.])((?:{_NAME}\s*\.\s*)?{_NAME})\s*\(")
_MENTION = re.compile(rf"(?<![\w$.])((?:{_NAME}\s*\.\s*)?{_NAME})")
_DYNAMIC = re.compile(r"\bexecute\b", re.IGNORECASE)
_PART = re.compile(_NAME)
_READABLE = frozenset({"sql", "plpgsql"})


class _Named(Protocol):
    @property
    def schema(self) -> str: ...

    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its text; `search_path` is its own setting, empty where it has none."""

    oid: int
    signature: str
    schema: str
    name: str
    language: str
    body: str
    search_path: tuple[str, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether its text can be expected to name what it writes to."""
        return self.language in _READABLE and not _DYNAMIC.search(_strip(self.body))


@dataclass(frozen=True, slots=True)
class Relation:
    """Something that could be written to."""

    oid: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Writes:
    """The oids of what a function writes to, and the functions whose text does not tell all."""

    relations: frozenset[int] = field(default=frozenset())
    unread: tuple[str, ...] = ()


class Library:
    """The functions and relations of one database, to be looked up by name."""

    def __init__(self, functions: Iterable[Function], relations: Iterable[Relation]) -> None:
        self.functions = {each.oid: each for each in functions}
        self._functions: Mapping[str, list[Function]] = _by_name(self.functions.values())
        self._relations: Mapping[str, list[Relation]] = _by_name(relations)

    def find_writes(self, oid: int) -> Writes:
        """Tell what a function writes to, with whatever it calls."""
        waiting, seen = [oid], set[int]()
        relations, unread = set[int](), list[str]()
        while waiting:
            number = waiting.pop()
            function = self.functions.get(number)
            if number in seen or function is None:
                continue
            seen.add(number)
            if not function.is_readable:
                unread.append(function.signature)
            text = _strip(function.body)
            relations |= {
                each.oid for each in _resolve(self._relations, _WRITE.findall(text), function)
            }
            called = _CALL.findall(text)
            waiting += [each.oid for each in _resolve(self._functions, called, function)]
        return Writes(frozenset(relations), tuple(unread))

    def find_mentions(self, oids: frozenset[int]) -> Iterator[tuple[Function, set[int]]]:
        """Return the functions whose text names one of these relations, with which."""
        for function in self.functions.values():
            named = _MENTION.findall(_strip(function.body))
            found = {each.oid for each in _resolve(self._relations, named, function)} & oids
            if found:
                yield function, found


def _by_name(values: Iterable[_T]) -> dict[str, list[_T]]:
    found: dict[str, list[_T]] = defaultdict(list)
    for each in values:
        found[each.name].append(each)
    return found


def _strip(body: str) -> str:
    return _COMMENT.sub(" ", body)


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def _resolve(
    known: Mapping[str, list[_T]], texts: Sequence[str], function: Function
) -> Iterator[_T]:
    """Return what the names stand for; one without a schema, for the likeliest of that name."""
    for text in set(texts):
        parts = [_unquote(part) for part in _PART.findall(text)]
        candidates = known.get(parts[-1], [])
        if len(parts) > 1:
            yield from (each for each in candidates if each.schema == parts[0])
            continue
        path = [*function.search_path, function.schema, "public"]
        near = [each for schema in path for each in candidates if each.schema == schema]
        yield from near[:1] or candidates[:1]
