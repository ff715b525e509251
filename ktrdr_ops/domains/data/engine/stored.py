"""Which series is stored now: what the journal published last, and what lies under the name that people read.

the file is the last that was published     that is it
there is no file, or an earlier one         a move was missed: the name is moved to the last
the file is nobody's                        it is kept as an object and published before it is used
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd

from ktrdr_ops.core.artifacts import Artifact, ObjectStore, Publication
from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.errors import JournalCorrupt
from ktrdr_ops.domains.data.engine.asked import Asked, spans_of
from ktrdr_ops.domains.data.engine.bars import bar_times, canonical_sha256
from ktrdr_ops.domains.data.engine.gaps import Span
from ktrdr_ops.domains.data.engine.segments import stamp
from ktrdr_ops.domains.data.engine.store import Format, Found, SeriesFiles, decoded, read_object

SERIES = "series"


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored series. ``covered`` was asked and answered before; ``publish`` is what must be published to keep it."""

    bars: pd.DataFrame
    object: str
    format: Format
    covered: list[Span] = field(default_factory=list)
    duplicates: int = 0
    publish: Sequence[Publication] = ()


class StoredSeries:
    """The stored series of one data folder."""

    def __init__(self, files: SeriesFiles, preferred: Format) -> None:
        self.files = files
        self.preferred = preferred

    async def current(self, asked: Asked, attempt: Attempt) -> Stored | None:
        """What is stored now; None is nothing. Raises SeriesUnreadable, JournalCorrupt, OSError.

        For a refresh what can no longer be read is nothing.
        """
        try:
            return await self._current(asked, attempt)
        except JournalCorrupt:
            if asked.refresh:
                return None
            raise

    async def _current(self, asked: Asked, attempt: Attempt) -> Stored | None:
        name = asked.timeframe.name
        found = await asyncio.to_thread(self.files.find, asked.symbol, name, self.preferred)
        latest = await attempt.catalogue.latest(SERIES, asked.key)
        if found is not None and await self._is_foreign(found, latest, asked, attempt):
            return await asyncio.to_thread(_imported, found, asked, attempt.objects)
        if latest is None:
            return None
        format = _format(latest)
        if found is not None and found.object == latest.object:
            await asyncio.to_thread(attempt.objects.put, found.content)  # heals an object that is gone or changed
        else:
            await self.move(asked, latest, attempt)
        bars = await asyncio.to_thread(read_object, attempt.objects, latest.object, format)
        return Stored(bars, latest.object, format, spans_of(latest.metadata.get("covered", ())))

    async def move(self, asked: Asked, latest: Artifact, attempt: Attempt) -> None:
        """Let the name be what was published last. Raises SeriesUnreadable, JournalCorrupt, OSError.

        What somebody else has put in its place is kept as an object and published first; then the last is again last.
        """
        format = _format(latest)
        content = await asyncio.to_thread(attempt.objects.read, latest.object)
        path = self.files.path(asked.symbol, asked.timeframe.name, format)
        found = await asyncio.to_thread(self.files.find, asked.symbol, asked.timeframe.name, format)
        if found is not None and found.path == path and await self._is_foreign(found, latest, asked, attempt):
            kept = await asyncio.to_thread(_imported, found, asked, attempt.objects)
            again = {each.name: getattr(latest, each.name) for each in fields(Publication)}
            await attempt.publish(*kept.publish, Publication(**again))
        await asyncio.to_thread(self.files.move, path, content)

    async def _is_foreign(self, found: Found, latest: Artifact | None, asked: Asked, attempt: Attempt) -> bool:
        if latest is None:
            return True
        if found.object == latest.object:
            return False
        earlier = await attempt.catalogue.every(SERIES, asked.key)
        return all(artifact.object != found.object for artifact in earlier if artifact.key == asked.key)


def _format(artifact: Artifact) -> Format:
    return "csv" if artifact.metadata.get("format") == "csv" else "parquet"


def _imported(found: Found, asked: Asked, objects: ObjectStore) -> Stored:
    bars, duplicates = decoded(found.content, found.format, str(found.path))
    objects.put(found.content)
    publication = series_publication(
        asked, bars, found.object, len(found.content), found.format, [], found.path, "import"
    )
    return Stored(bars, found.object, found.format, [], duplicates, (publication,))


def series_publication(
    asked: Asked, bars: pd.DataFrame, object: str, size: int, format: Format, covered: list[Any], path: Any, source: str
) -> Publication:
    """A series to publish, with what is known of it in its metadata."""
    return Publication(
        kind=SERIES,
        key=asked.key,
        object=object,
        sha256=canonical_sha256(bars),
        size=size,
        metadata={**extent(bars), "format": format, "source": source, "mode": asked.mode, "covered": covered},
        name=str(path),
    )


def extent(bars: pd.DataFrame) -> dict[str, Any]:
    """``rows``, ``first`` and ``last`` (ISO-8601 UTC, None without a bar)."""
    if not len(bars):
        return {"rows": 0, "first": None, "last": None}
    first, last = bar_times(bars.iloc[[0, -1]])
    return {"rows": len(bars), "first": stamp(first), "last": stamp(last)}
