"""``data show`` and ``data verify``: what is stored, and whether it is what the journal says."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from ktrdr_ops.core.artifacts import Artifact, ObjectStore
from ktrdr_ops.core.domain import CommandContext, CommandResult
from ktrdr_ops.core.errors import JournalCorrupt, OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.domains.data.engine.bars import COLUMNS, bar_times, canonical_sha256, values
from ktrdr_ops.domains.data.engine.errors import NothingStored, SeriesUnreadable
from ktrdr_ops.domains.data.engine.store import Format, SeriesFiles, decoded, read_object
from ktrdr_ops.domains.data.engine.stored import SERIES, extent
from ktrdr_ops.domains.data.engine.symbols import symbol as checked_symbol
from ktrdr_ops.domains.data.engine.timeframes import timeframe as checked_timeframe

_SHOWN = 5
_BROKEN = 4


async def show(context: CommandContext) -> CommandResult:
    """The first and last bars and where they came from. Raises NothingStored, InvalidValue, JournalCorrupt."""
    app, given = context.app, context.values
    symbol, timeframe = checked_symbol(given["symbol"]), checked_timeframe(given["timeframe"]).name
    as_of = await _publisher(app, given.get("as_of"))
    artifact = await app.catalogue.latest(SERIES, f"{symbol}:{timeframe}", as_of=as_of)
    if artifact is not None:
        format = _format(artifact)
        bars = await asyncio.to_thread(read_object, app.objects, artifact.object, format)
        origin = _origin(artifact)
    elif as_of is None:
        bars, origin = await asyncio.to_thread(_own_file, app.settings, symbol, timeframe)
    else:
        raise NothingStored(
            f"{as_of} published no series {symbol} {timeframe}",
            hint=f"ktrdr-ops list --key data_load:{symbol}:{timeframe}",
        )
    document = {"symbol": symbol, "timeframe": timeframe, **extent(bars), "sha256": canonical_sha256(bars), **origin}
    document["bars"] = _rows(bars)
    return CommandResult(document, _text(document, len(bars)))


async def _publisher(app: Any, as_of: str | None) -> str | int | None:
    """An operation's id from any unique beginning of it, or a position of the journal."""
    if as_of is None:
        return None
    try:
        return await history.find(app.journal, as_of)
    except OperationNotFound:
        if as_of.isascii() and as_of.isdigit() and len(as_of) < 19:
            return int(as_of)
        raise


def _own_file(settings: Any, symbol: str, timeframe: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    found = SeriesFiles(settings.data_dir).find(symbol, timeframe, settings.data_format)
    if found is None:
        raise NothingStored(
            f"nothing is stored of {symbol} {timeframe}", hint=f"Load it: ktrdr-ops data load {symbol} {timeframe}"
        )
    bars = decoded(found.content, found.format, str(found.path))[0]
    return bars, {"path": str(found.path), "source": "a file that no operation published", "operation_id": None}


def _origin(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": artifact.name,
        "source": artifact.metadata.get("source"),
        "operation_id": artifact.operation_id,
        "position": artifact.position,
        "published_at": artifact.at.isoformat(),
    }


def _rows(bars: pd.DataFrame) -> list[dict[str, Any]]:
    ends = bars if len(bars) <= 2 * _SHOWN else pd.concat([bars.iloc[:_SHOWN], bars.iloc[-_SHOWN:]])
    numbers = values(ends).tolist()
    return [
        {"timestamp": at.isoformat(), **dict(zip(COLUMNS, map(_plain, row), strict=True))}
        for at, row in zip(bar_times(ends), numbers, strict=True)
    ]


def _plain(number: float) -> float | None:
    return number if number - number == 0 else None  # NaN and infinity are no JSON


def _text(document: dict[str, Any], count: int) -> str:
    head = f"{document['symbol']} {document['timeframe']}   {count:,} bars   {document['first']} to {document['last']}"
    lines = [f"{'timestamp':<26}" + "".join(f"{name:>14}" for name in COLUMNS)]
    for number, row in enumerate(document["bars"]):
        if number == _SHOWN and count > 2 * _SHOWN:
            lines.append("...")
        cells = "".join(
            f"{'nan' if row[name] is None else format(row[name], 'g' if name != 'volume' else ',.0f'):>14}"
            for name in COLUMNS
        )
        lines.append(f"{row['timestamp']:<26}{cells}")
    published = document["operation_id"] or "no operation"
    where = f"{document['path']}\nfrom {document['source']}, published by {published}\nsha256 {document['sha256']}"
    return "\n".join([head, *lines, where])


async def verify(context: CommandContext) -> CommandResult:
    """Each published series: its object, its rows, the file under its name. Exit code 4 if one is not as journaled."""
    app, given = context.app, context.values
    prefix = ""
    if given.get("symbol"):
        prefix = checked_symbol(given["symbol"]) + ":"
        if given.get("timeframe"):
            prefix += checked_timeframe(given["timeframe"]).name
    latest: dict[str, Artifact] = {}
    for artifact in await app.catalogue.every(SERIES, prefix):
        latest.setdefault(artifact.key, artifact)
    if prefix and not latest:
        symbol, _, timeframe = prefix.partition(":")
        raise OperationNotFound(
            f"no operation has published a series {symbol} {timeframe}".rstrip(),
            hint=f"Load it: ktrdr-ops data load {symbol} {timeframe or '1d'}",
        )
    checked = [await asyncio.to_thread(_checked, artifact, app.objects) for _, artifact in sorted(latest.items())]
    problems = [each for each in checked if each["problems"]]
    lines = [
        f"{'broken' if each['problems'] else 'ok':<7} {each['key']:<16} {each['rows']:>8,} bars  {each['path']}"
        + "".join(f"\n        {problem}" for problem in each["problems"])
        for each in checked
    ]
    said = f"{len(checked)} series, {len(problems)} broken" if checked else "no operation has published a series"
    return CommandResult({"ok": not problems, "series": checked}, "\n".join([*lines, said]), _BROKEN if problems else 0)


def _checked(artifact: Artifact, objects: ObjectStore) -> dict[str, Any]:
    """What is wrong with one series; nothing, if all is as journaled."""
    problems = []
    try:
        sha256 = canonical_sha256(read_object(objects, artifact.object, _format(artifact)))
        if sha256 != artifact.sha256:
            problems.append(f"the rows of its object have the sha256 {sha256}, the journal says {artifact.sha256}")
    except (JournalCorrupt, SeriesUnreadable, OSError) as error:
        problems.append(str(error))
    problems += _file_problems(artifact)
    symbol, _, timeframe = artifact.key.partition(":")
    return {
        "key": artifact.key,
        "symbol": symbol,
        "timeframe": timeframe,
        "rows": artifact.metadata.get("rows", 0),
        "sha256": artifact.sha256,
        "path": artifact.name,
        "operation_id": artifact.operation_id,
        "ok": not problems,
        "problems": problems,
    }


def _file_problems(artifact: Artifact) -> list[str]:
    if artifact.name is None:
        return []
    path = Path(artifact.name)
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    if hashlib.sha256(content).hexdigest() == artifact.object:
        return []
    try:
        rows = decoded(content, _format(artifact), str(path))[0]
    except SeriesUnreadable as error:
        return [str(error)]
    if canonical_sha256(rows) == artifact.sha256:
        return [f"{path} holds the same bars in other bytes than were published"]
    return [f"{path} holds other bars than were published"]


def _format(artifact: Artifact) -> Format:
    return "csv" if artifact.metadata.get("format") == "csv" else "parquet"
