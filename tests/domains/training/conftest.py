"""An application with the training domain, over a host of the test's own, and a series that was published before."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.domains.training import domain
from ktrdr_ops.settings import Settings
from tests.domains.training.training_host import TrainingHost
from tests.domains.training.trainings import publish_series


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The hosts of these tests answer at once, so they are asked more often."""
    monkeypatch.setattr("ktrdr_ops.domains.training.engine.sessions._FASTEST_POLL", 0.02)
    monkeypatch.setattr("ktrdr_ops.domains.training.engine.epochs.BATCH_SECONDS", 0.0)


@pytest.fixture(params=[1, 2], ids=["first", "second"])
async def either(request):
    """A host of each generation in turn."""
    async with TrainingHost(request.param) as made:
        yield made


@pytest.fixture
async def host():
    """A host of the current generation."""
    async with TrainingHost() as made:
        yield made


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(journal=tmp_path / "journal.db", data_dir=tmp_path / "data", models_dir=tmp_path / "models")


@pytest.fixture
def opened(settings):
    """Opens an application on a host, with the series TEST 1d published."""

    @asynccontextmanager
    async def opening(host, **changes):
        async with open_app_async(settings=replace(settings, training_host_url=host.url, **changes)) as app:
            app.register(domain)
            await publish_series(app, "TEST")
            yield app

    return opening
