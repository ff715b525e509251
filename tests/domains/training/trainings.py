"""What the tests of trainings share."""

from __future__ import annotations

import asyncio

from ktrdr_ops.core.artifacts import Publication
from ktrdr_ops.core.orchestration import AsyncOperation


def train(app, **asked):
    return app.run("model_train", **{"symbols": "TEST", "timeframe": "1d", "epochs": 5, **asked})


async def publish_series(app, symbol, content=b"bars", sha256="c" * 64, *, again=False):
    """A series as a load would leave it; once a journal."""
    if again or await app.catalogue.latest("series", f"{symbol}:1d") is None:
        await publish_on(app.framework, symbol, content, sha256)


async def publish_on(framework, symbol, content=b"bars", sha256="c" * 64):
    key = f"{symbol}:1d"

    async def load(operation, progress, token, attempt):
        sha = attempt.objects.put(content)
        metadata = {"rows": 100, "format": "parquet"}
        await attempt.publish(
            Publication(kind="series", key=key, object=sha, sha256=sha256, size=len(content), metadata=metadata)
        )

    await framework.execute_operation(AsyncOperation(f"stored_{symbol}", "stored", 1), load)


async def events(app, type=None, reference="@last"):
    return [event for event in await app.events(reference) if type is None or event.type == type]


async def steps(app, reference="@last"):
    return {event.fact.name: event.fact.value for event in await events(app, "step_completed", reference)}


async def step_names(app, reference="@last"):
    return [event.fact.name for event in await events(app, "step_completed", reference)]


async def until(condition, within=10.0):
    """Poll an async condition; gives what it gave."""
    async with asyncio.timeout(within):
        while not (value := await condition()):
            await asyncio.sleep(0.01)
        return value


async def until_event(app, matches, within=10.0):
    """The first event for which this holds."""
    async with asyncio.timeout(within):
        async for event in app.journal.tail(after=0):
            if matches(event):
                return event
    raise AssertionError("unreachable")
