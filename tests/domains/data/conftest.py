"""An application with the data domain, over a host of the test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.domains.data import domain
from ktrdr_ops.settings import Settings
from tests.domains.data.data_host import DataHost, daily


@pytest.fixture
def bars():
    return daily("2010-01-04", "2013-03-01")


@pytest.fixture
async def host(bars):
    async with DataHost({("TEST", "1d"): bars}) as made:
        yield made


@pytest.fixture
def settings(tmp_path, host) -> Settings:
    return Settings(
        journal=tmp_path / "journal.db",
        data_dir=tmp_path / "data",
        ib_host_url=host.url,
        pacing=False,
        as_of="2013-03-02T00:00:00+00:00",
    )


@pytest.fixture
def opened(settings):
    """Opens an application, with changes to the settings."""

    @asynccontextmanager
    async def opening(**changes):
        async with open_app_async(settings=replace(settings, **changes), clock=lambda: datetime.now(UTC)) as app:
            app.register(domain)
            yield app

    return opening


@pytest.fixture
async def app(opened):
    async with opened() as made:
        yield made
