"""What a payload may hold: plain JSON, within limits, without secrets.

An append-only file cannot forget, so secrets are replaced by their key's name before anything is hashed. Start
parameters are strict: what JSON cannot say is refused. Progress never fails for a value: numbers that are not finite
are tagged, values of numpy and pandas converted, the rest described, and what is too large or too deep replaced by a
marker; each with one warning a process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import date, datetime
from itertools import islice
from math import isfinite
from pathlib import PurePath
from typing import Any

import orjson

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Checkpointed, Fact, Json, Progressed, payload

EVENT_BYTES = 64 * 1024
CHECKPOINT_BYTES = 1024 * 1024
DEPTH = 64
_NODES = 20_000
REDACTED = "[redacted]"

_NAMES = (
    r"(?:password|passwd|passphrase|pwd|secret|token|api_?key|apikey|access_?key|private_?key|credentials?"
    r"|authorization|cookie|bearer)"
)
_SECRET = re.compile(rf"(?:^|[_\-. ]){_NAMES}(?:$|[_\-. ])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_IN_TEXT = re.compile(
    r"\b(?:bearer|basic)\s+[a-z0-9+/_\-.=]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    rf"|(?P<name>(?<![a-z0-9]){_NAMES}[\"']?=[\"']?)[^\s\"'&,;)]+",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)
_warned: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a value under this name is never stored."""
    return _SECRET.search(_CAMEL.sub("_", key)) is not None


def redact_text(text: str) -> str:
    """A text without the credentials that headers, URLs and ``password=…`` carry."""
    return _IN_TEXT.sub(lambda found: (found["name"] or "") + REDACTED, text)


def strict(value: Any, what: str = "parameters", *, limit: int = EVENT_BYTES, secrets: bool = True) -> Json:
    """The value as JSON. Secrets are redacted, or (``secrets=False``, for what must come back whole) refused.

    Raises InvalidValue for what JSON cannot say, for more than ``limit`` bytes and for a depth over 64.
    """
    cleaned = _strict(value, what, 0, secrets)
    size = len(orjson.dumps(cleaned))
    if size > limit:
        raise InvalidValue(
            f"{what}: {size:,} bytes are more than the {limit:,} that an event holds",
            hint="Put it into a file and name the file.",
        )
    return cleaned


def _strict(value: Any, what: str, depth: int, secrets: bool) -> Json:
    if depth > DEPTH:
        raise InvalidValue(f"{what}: nested deeper than {DEPTH} levels", hint="Flatten it.")
    match value:
        case None | bool():
            return value
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidValue(f"{what}: {value} does not fit into 64 bits")
            return int(value)
        case float():
            return float(value) if isfinite(value) else {"$float": repr(float(value))}
        case str():
            return _strict_text(value, what)
        case Mapping():
            return {
                _strict_text(key, what): _strict_value(key, inner, what, depth, secrets) for key, inner in value.items()
            }
        case list() | tuple():
            return [_strict(inner, f"{what}[{index}]", depth + 1, secrets) for index, inner in enumerate(value)]
        case datetime() | date():
            return value.isoformat()
        case PurePath():
            return _strict_text(str(value), what)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return _strict(value.item(), what, depth, secrets)
    raise InvalidValue(
        f"{what}: a {type(value).__name__} cannot be stored", hint="Use text, numbers, lists and mappings."
    )


def _strict_value(key: Any, value: Any, what: str, depth: int, secrets: bool) -> Json:
    if not is_secret(str(key)):
        return _strict(value, f"{what}.{key}", depth + 1, secrets)
    if secrets:
        return REDACTED
    raise InvalidValue(
        f"{what}: {key!r} is a secret's name, and what is kept here can never be forgotten",
        hint="Read the secret anew in each attempt; if it is none, give it another name.",
    )


def _strict_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidValue(f"{what}: the key {value!r} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{what}: {value[:40]!r} holds half of a surrogate pair, which is no text") from None
    return redact_text(value)


def storable(fact: Fact) -> tuple[Fact, bytes]:
    """The fact as it can be stored, and its stored form. Progress always has one, whatever its values are.

    Raises InvalidValue for another fact that is larger than an event (64 KiB) or a checkpoint (1 MiB) may be.
    """
    if isinstance(fact, Progressed):
        return _progress(fact)
    texts = {f.name: getattr(fact, f.name) for f in fields(fact)}
    cleaned = {name: redact_text(_text(text)) for name, text in texts.items() if isinstance(text, str)}
    fact = replace(fact, **{name: text for name, text in cleaned.items() if text != texts[name]})  # type: ignore[arg-type]  # each text goes back where it came from
    stored = payload(fact)
    limit = CHECKPOINT_BYTES if isinstance(fact, Checkpointed) else EVENT_BYTES
    if len(stored) > limit:
        raise InvalidValue(
            f"{fact.type}: {len(stored):,} bytes are more than the {limit:,} that such an event holds",
            hint="Publish it as an artifact, or checkpoint it.",
        )
    return fact, stored


def _progress(fact: Progressed) -> tuple[Fact, bytes]:
    context = fact.context
    for key, value in context.items():
        kind = type(value)
        if (kind in _PLAIN or (kind is float and isfinite(value))) and (key in _safe_names or _is_safe(key)):
            continue
        context = {_text(key): REDACTED if is_secret(_text(key)) else _lenient(value) for key, value in context.items()}
        break
    message = fact.message
    if _may_hold_credentials(message):
        message = redact_text(message)
    if context is not fact.context or message is not fact.message:
        fact = replace(fact, context=context, message=message)
    stored = _dump(fact)
    if stored is None or len(stored) > EVENT_BYTES:
        fact = _shrunk(fact)
        stored = payload(fact)
    return fact, stored


def _may_hold_credentials(message: str) -> bool:
    lower = message.lower()
    return "://" in lower or "bearer" in lower or "basic" in lower


_PLAIN = frozenset({str, int, bool, type(None)})
_safe_names: set[Any] = set()


def _is_safe(key: Any) -> bool:
    """Whether it names no secret; remembered for the few names that progress repeats a hundred thousand times."""
    safe = type(key) is str and not is_secret(key)
    if safe and len(_safe_names) < 10_000:
        _safe_names.add(key)
    return safe


def _dump(fact: Progressed) -> bytes | None:
    try:
        return payload(fact)
    except TypeError:
        return None


def _shrunk(fact: Progressed) -> Progressed:
    """What is left when the whole does not fit or cannot be said: the largest values give way to markers."""
    smaller: dict[str, Json] = {}
    room = EVENT_BYTES - 8 * 1024
    context = fact.context
    for key, value in sorted(context.items(), key=lambda pair: len(_described(pair[1]))):
        text = _text(key)[:200]
        cleaned = _lenient(value)
        size = len(orjson.dumps(cleaned)) + len(text)
        if size <= room:
            smaller[text] = cleaned
            room -= size
        else:
            smaller[text] = _marker("too large", value)
            room -= 200
        if room <= 0:
            smaller["$more"] = f"{len(context) - len(smaller)} values left out"
            break
    return replace(fact, context=smaller, message=_text(fact.message)[:4000])


def _lenient(value: Any) -> Json:
    """The value as JSON whatever it is. Large ones cost no more than _NODES steps."""
    try:
        return _said(value, 0, [_NODES])
    except Exception:  # a stranger's object may raise anything from any method, and progress must not fail for it
        return _marker("cannot be read", value)


def _said(value: Any, depth: int, room: list[int]) -> Json:
    room[0] -= 1
    if depth > DEPTH:
        return _marker("nested too deep", value)
    if room[0] < 0:
        return _marker("too large", value)
    match value:
        case None | bool():
            return value
        case str():
            return redact_text(_text(value))
        case int():
            return int(value) if -(2**63) <= value < 2**63 else _marker("too large a number", value)
        case float():
            return float(value) if isfinite(value) else {"$float": repr(float(value))}
        case Mapping():
            return {
                _text(key): REDACTED if is_secret(_text(key)) else _said(inner, depth + 1, room)
                for key, inner in _first(value.items(), room)
            }
        case list() | tuple() | set() | frozenset():
            return [_said(inner, depth + 1, room) for inner in _first(value, room)]
        case datetime() | date():
            return value.isoformat()
    return _foreign(value, depth, room)


def _first(values: Iterable[Any], room: list[int]) -> Iterable[Any]:
    """The values, up to one more than there is room for: that one becomes the marker."""
    return islice(values, max(room[0], 0) + 1)


def _foreign(value: Any, depth: int, room: list[int]) -> Json:
    """Values of numpy and pandas, known by what they offer; the rest is described."""
    if getattr(value, "size", 1) > room[0]:
        return _marker("too large", value)
    for method in ("tolist", "isoformat"):
        convert = getattr(value, method, None)
        if callable(convert):
            return _said(convert(), depth + 1, room)
    return _marker("cannot be stored", value)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else _described(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _described(value: Any) -> str:
    try:
        return str(value)[:200]
    except Exception as error:  # a stranger's __str__ may raise anything, and progress must not fail for it
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _marker(why: str, value: Any) -> dict[str, str]:
    kind = type(value).__name__
    if f"{why} {kind}" not in _warned:
        _warned.add(f"{why} {kind}")
        _log.warning("a progress value was replaced: %s (%s)", why, kind)
    return {"$replaced": why, "type": kind}
