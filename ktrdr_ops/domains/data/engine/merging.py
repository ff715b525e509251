"""From stored bars and fetched segments to one series, compared where both hold a bar, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from ktrdr_ops.core.artifacts import ObjectStore, Publication
from ktrdr_ops.domains.data.engine.asked import MOST_COVERED, Asked, spans_document, spans_of
from ktrdr_ops.domains.data.engine.bars import (
    bar_times,
    canonical_sha256,
    differing,
    empty_bars,
    merged,
    moment_at,
    times,
)
from ktrdr_ops.domains.data.engine.calendar import periods
from ktrdr_ops.domains.data.engine.errors import DataServiceError, SeriesRevised
from ktrdr_ops.domains.data.engine.gaps import OVERLAP, Span, missing_periods, united
from ktrdr_ops.domains.data.engine.quality import gap_report, quality_report
from ktrdr_ops.domains.data.engine.segments import stamp
from ktrdr_ops.domains.data.engine.store import Format, SeriesFiles, encoded, read_object
from ktrdr_ops.domains.data.engine.stored import Stored, extent, series_publication


@dataclass(frozen=True, slots=True)
class Merged:
    """``saved`` is the value of the step that saves it; ``publication`` is None when there is nothing new."""

    saved: dict[str, Any]
    publication: Publication | None


@dataclass(frozen=True, slots=True)
class Merge:
    """One load's merging: into which files and format, of what source, from which segments' step values."""

    asked: Asked
    objects: ObjectStore
    files: SeriesFiles
    format: Format
    source: str
    values: list[Any]

    def into(self, current: Stored | None) -> Merged:
        """Put the merged series into the object store.

        Raises SeriesRevised where bars that were asked for again are others, or gone; DataServiceError when a refresh
        brought nothing in the place of something.
        """
        old = empty_bars() if current is None else current.bars
        new = merged(read_object(self.objects, value["object"], "parquet") for value in self.values)
        if self.asked.refresh:
            self._not_emptied(old, new)
        else:
            self._same_where_both(old, new)
        series = new if self.asked.refresh else merged([old, new])
        publication = self._publication(current, series)
        if publication is not None:
            return Merged(self._saved(publication.object, self.format, series, old, current), publication)
        if current is not None:
            return Merged(self._saved(current.object, current.format, series, old, current), None)
        return Merged(self._saved(None, self.format, series, old, current), None)

    def _not_emptied(self, old: pd.DataFrame, new: pd.DataFrame) -> None:
        if len(old) and not len(new):
            raise DataServiceError(
                f"the host has no bars of {self.asked.key} now; the stored ones are kept",
                hint="Look at the host: ktrdr-ops doctor",
            )

    def _same_where_both(self, old: pd.DataFrame, new: pd.DataFrame) -> None:
        asked = self.asked
        revised = differing(old, new)
        if asked.mode == "tail" and self.values:
            again = times(old)[-OVERLAP:]
            revised += [moment_at(int(at)) for at in np.setdiff1d(again, times(new))]
        if not revised:
            return
        raise series_revised(asked, revised, "stored bars are")

    def _covered(self, current: Stored | None) -> list[Span]:
        before: Iterable[Span] = () if current is None or self.asked.refresh else current.covered
        return united([*before, *spans_of(value["span"] for value in self.values)])[-MOST_COVERED:]

    def _publication(self, current: Stored | None, series: pd.DataFrame) -> Publication | None:
        asked = self.asked
        if not len(series) or asked.mode == "local":
            return None
        covered = self._covered(current)
        if current is not None and current.covered == covered and not _changed(current.bars, series):
            return None
        content = encoded(series, self.format)
        path = self.files.path(asked.symbol, asked.timeframe.name, self.format)
        object = self.objects.put(content)
        spans = spans_document(covered)
        return series_publication(asked, series, object, len(content), self.format, spans, path, self.source)

    def _saved(
        self, object: str | None, format: Format, series: pd.DataFrame, old: pd.DataFrame, current: Stored | None
    ) -> dict[str, Any]:
        asked, values = self.asked, self.values
        duplicates = sum(value["duplicates"] for value in values) + (current.duplicates if current else 0)
        notes = [note for value in values for note in value["notes"]]
        gaps = gap_report(_missing(asked, series))
        result = {
            "symbol": asked.symbol,
            "timeframe": asked.timeframe.name,
            "mode": asked.mode,
            "source": self.source,
            **extent(series),
            "rows_added": len(np.setdiff1d(times(series), times(old))),
            "path": None if object is None else str(self.files.path(asked.symbol, asked.timeframe.name, format)),
            "sha256": canonical_sha256(series),
            "segments": {"total": len(values), "fetched": len(values), "failed": 0},
            "requests": sum(value["requests"] for value in values),
            "gaps": gaps,
            "quality": quality_report(series, duplicates=duplicates, missing=gaps["periods"], notes=notes),
        }
        return {"object": object, "format": format, "result": result}


def series_revised(asked: Asked, revised: Iterable[datetime], what: str) -> SeriesRevised:
    """The error that names what came back different; ``what`` follows its number: "stored bars are"."""
    stamps = [stamp(at) for at in sorted(revised)]
    return SeriesRevised(
        f"{asked.symbol} {asked.timeframe.name} was revised: {len(stamps)} {what} not what the host gives now "
        f"({', '.join(stamps[:OVERLAP])})",
        hint=f"Load it anew: ktrdr-ops data load {asked.symbol} {asked.timeframe.name} --mode full --refresh",
        result={"symbol": asked.symbol, "timeframe": asked.timeframe.name, "revised": stamps[:20]},
    )


def lacking(old: pd.DataFrame, new: pd.DataFrame) -> list[datetime]:
    """The times of old bars that the new ones hold differently, or not at all."""
    gone = np.setdiff1d(times(old), times(new))
    return [*differing(old, new), *(moment_at(int(at)) for at in gone)]


def _changed(old: pd.DataFrame, new: pd.DataFrame) -> bool:
    return canonical_sha256(old) != canonical_sha256(new)


def _missing(asked: Asked, series: pd.DataFrame) -> list[tuple[datetime, datetime, int]]:
    """Periods without a bar between the first and the last one."""
    if not len(series):
        return []
    first, last = bar_times(series.iloc[[0, -1]])
    return missing_periods(times(series), Span(first, last), periods(asked.symbol, asked.timeframe, last))
