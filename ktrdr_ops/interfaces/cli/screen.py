"""What is printed, made fit for where it goes.

``safe`` escapes everything in a foreign text that could move the cursor, hide or reorder what stands there; ``paint``
marks text for colour. A screen then keeps the colours where they are wanted, and says in ASCII what the stream's
encoding cannot say.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

Color = Literal["auto", "always", "never"]
Style = Literal["good", "bad", "warn", "dim", "bold"]

_SGR = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}
_OURS = re.compile("\x1b\\[(?:0|1|2|31|32|33)m")
_HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_HOSTILE_BUT_LINES = re.compile(_HOSTILE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_IN_JSON = re.compile(_HOSTILE.pattern.replace("\x00-\x1f", ""))
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ASCII = str.maketrans(
    {
        "✓": "ok",
        "✗": "x",
        "·": "-",
        "…": "...",
        "→": "->",
        "←": "<-",
        "–": "-",
        "—": "-",
        "│": "|",
        "━": "=",
        "╸": "=",
        "╺": "-",
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
    }
)


def safe(value: object, limit: int | None = None) -> str:
    """A foreign text on one line: control characters, line breaks and reordering marks escaped; cut at ``limit``."""
    text = _HOSTILE.sub(_escaped, str(value))
    return text if limit is None or len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def paint(text: str, style: Style) -> str:
    """The text in a colour, where colours are shown. The text itself must be safe."""
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m"


def unpainted(text: str) -> str:
    """Without the marks of ``paint``."""
    return _OURS.sub("", text)


def _escaped(match: re.Match[str]) -> str:
    char = match.group()
    return _NAMED.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")


def json_text(document: Any, *, lines: bool = False) -> str:
    """A document as JSON: indented, or on one line. Whatever could disturb a terminal is written ``\\uXXXX``."""
    import json

    text = json.dumps(document, ensure_ascii=False, indent=None if lines else 2, default=str)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


class Screen:
    """One stream: whether it is a terminal, what it can show, and writing to it.

    ``above`` takes the lines while a region of the terminal is drawn again and again: they go above it.
    """

    def __init__(self, stream: TextIO, color: Color = "auto") -> None:
        self.stream = stream
        self.above: Callable[[str], None] | None = None
        self.terminal = stream.isatty()
        self.encoding = getattr(stream, "encoding", None) or "ascii"
        self.unicode = self.encoding.lower().replace("-", "").startswith("utf")
        self.colors = color == "always" or (
            color == "auto"
            and self.terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "") not in ("", "dumb")
        )

    @property
    def width(self) -> int:
        """Columns; 80 where nobody knows."""
        return shutil.get_terminal_size((80, 24)).columns

    def fit(self, text: str) -> str:
        """The text as this stream can show it."""
        if not self.colors:
            text = unpainted(text)
        kept = _OURS.findall(text)
        text = "\x1b".join(_HOSTILE_BUT_LINES.sub(_escaped, part) for part in _OURS.split(text))
        if not self.unicode:
            text = text.translate(_ASCII).encode(self.encoding, "backslashreplace").decode(self.encoding)
        for mark in kept:
            text = text.replace("\x1b", mark.replace("\x1b", "\0"), 1)
        return text.replace("\0", "\x1b")

    def write(self, text: str) -> None:
        """Lines, with a line break at the end. Raises BrokenPipeError when nobody reads any more."""
        self._write(self.fit(text) + "\n")

    def write_json(self, document: Any, *, lines: bool = False) -> None:
        """A JSON document, valid in any encoding."""
        text = json_text(document, lines=lines)
        if not self.unicode:
            text = re.sub("[^\x00-\x7f]", _surrogates, text)
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        if self.above is not None:
            self.above(text)
            return
        self.stream.write(text)
        self.stream.flush()


def _surrogates(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def silence_stdout() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
