"""By what a later attempt recognises an item of a loop, and the loop itself."""

from __future__ import annotations

import hashlib
import linecache
import re
from collections import deque
from collections.abc import Iterable, Mapping, MappingView
from datetime import date, time, timedelta, tzinfo
from enum import Enum
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import PurePath
from types import CodeType, FrameType, ModuleType
from typing import Any

from ktrdr_ops.core.errors import InvalidValue

MAX_DEPTH = 50
"""How deep an item may be nested."""
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{4,}")
_ABRIDGED = re.compile(r"\.\.\.|…")
_PLAIN = (str, int, float, bytes, complex, bytearray)
_SAY_ALL = (PurePath, type, ModuleType)
_WITHOUT_STATE = (Enum, date, time, timedelta, tzinfo)
"""What they keep beside what they say was only computed from it: pandas' own are such too."""
_NOT_THE_USERS = re.compile(r"(ktrdr_ops|asyncio|concurrent|threading)(\.|$)")


def stored(said: str) -> bytes:
    """A text as it is hashed, with lone surrogates too."""
    return said.encode("utf-8", "surrogatepass")


def described(item: object) -> str:
    """What an item is recognised by in a later attempt: its repr, and what it holds. Raises InvalidValue where that is
    another one in every process, or does not say all of it (a set, an array, a frame)."""
    return _described(item, ())


def _described(item: object, around: tuple[object, ...]) -> str:
    if item is None or type(item) in _PLAIN or isinstance(item, _SAY_ALL):
        return repr(item)
    if isinstance(item, set | frozenset) or _is_array(item):
        raise _not_recognised(item, "what is printed of it is no name")
    if len(around) >= MAX_DEPTH or any(item is one for one in around):
        raise _not_recognised(item, f"it holds itself, or is nested more than {MAX_DEPTH} deep")
    holds, state = _contents(item), _state(item)
    parts = [_described(part, (*around, item)) for part in chain(holds or (), state)]
    if holds is None:
        parts.append(repr(_printed(item, abridged=bool(state))))
    return f"{type(item).__qualname__}({', '.join(parts)})"


def _is_array(item: object) -> bool:
    """Whether it is printed in part, as arrays and frames are; numpy's single numbers are not, and can be hashed."""
    kind = type(item)
    return hasattr(kind, "__array__") and (kind.__module__ != "numpy" or kind.__hash__ is None)


def _contents(item: object) -> Iterable[object] | None:
    """What it consists of, for what says all of itself by that; None for others."""
    if isinstance(item, Enum):
        return (item.name, item.value)
    if isinstance(item, Mapping):
        return chain.from_iterable(item.items())
    if isinstance(item, list | tuple | deque | MappingView):
        return item  # type: ignore[return-value]  # each kind of view can be iterated
    return next(((plain.__repr__(item),) for plain in _PLAIN if isinstance(item, plain)), None)


def _state(item: object) -> list[object]:
    """Its attributes, each behind its name; without those that a library keeps for itself, or that are computed."""
    state: Any = None if isinstance(item, _WITHOUT_STATE) else object.__getstate__(item)
    found = [part for part in (state if isinstance(state, tuple) else (state,)) if part]
    named = {name: value for part in found for name, value in part.items() if not name.startswith("__")}
    own = [name for name in sorted(named) if not isinstance(getattr(type(item), name, None), cached_property)]
    return [part for name in own for part in (name, named[name])]


def _printed(item: object, *, abridged: bool) -> str:
    """Its repr; one that leaves something out only where the rest is said otherwise."""
    said = repr(item)
    if _ADDRESS.search(said):
        raise _not_recognised(item, "it says something else in every process", said)
    if not abridged and _ABRIDGED.search(said):
        raise _not_recognised(item, "what is printed of it leaves something out", said)
    return said


def _not_recognised(item: object, why: str, said: str = "") -> InvalidValue:
    return InvalidValue(
        f"{said[:80] or f'a {type(item).__name__}'} cannot be recognised by a later attempt: {why}",
        hint="Track what names it: an id, a path, a month; op.track(range(len(chunks))).",
    )


def site_of(frame: FrameType) -> str:
    """What a track without a name is known by: the line that calls ``op.track``, and those of its callers, as they are
    written. So an edit elsewhere changes nothing, and neither does a notebook's cell that is run again."""
    digest = hashlib.sha256()
    around: FrameType | None = frame
    while around is not None and not _NOT_THE_USERS.match(around.f_globals.get("__name__", "")):
        digest.update(stored(_line(around.f_code, around.f_lineno)))
        around = around.f_back
    return f"{frame.f_code.co_name[:40]}~{digest.hexdigest()[:12]}"


@lru_cache(maxsize=1024)
def _line(code: CodeType, line: int) -> str:
    """A line of a function: which one of how many that say the same, or without a source where it is."""

    def text(number: int) -> str:
        return linecache.getline(code.co_filename, number).strip()

    last = max((number for *_, number in code.co_lines() if number is not None), default=line)
    alike = [number for number in range(code.co_firstlineno, last + 1) if text(number) == text(line)]
    which = (alike.index(line), len(alike), text(line)) if text(line) else line - code.co_firstlineno
    return repr((code.co_qualname, which))
