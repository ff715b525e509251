"""What the tests of loads share."""

from __future__ import annotations

from ktrdr_ops.core.domain import CommandContext


def load(app, symbol="TEST", timeframe="1d", **more):
    return app.run("data_load", symbol=symbol, timeframe=timeframe, **more)


def once(*behaviours):
    """These for the first requests, then the right answers."""
    left = list(behaviours)
    return lambda asked: left.pop(0) if left else None


def failing_from(start, behaviour):
    return lambda asked: behaviour if asked["start"].startswith(start) else None


async def artifacts(app, kind, key="TEST:1d"):
    return [each for each in await app.catalogue.every(kind, key) if each.key == key]


def command(app, **values):
    return CommandContext(app, values)
