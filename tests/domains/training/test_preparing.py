"""Series that are missing are loaded first, as operations of their own; and many operations run side by side."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data import domain as data_domain
from ktrdr_ops.domains.data.engine.errors import DataServiceError
from ktrdr_ops.domains.training import domain
from ktrdr_ops.domains.training.engine.host import TrainingHostService
from ktrdr_ops.domains.training.interface import TrainingDomainInterface
from ktrdr_ops.domains.training.operations import TrainingConfig
from tests.domains.data.data_host import DataHost, daily, failing, says
from tests.domains.training.training_host import TrainingHost
from tests.domains.training.trainings import events, publish_on, train, until_event
from tests.faulty_host import after, hang

LETTERS = ("A", "B", "C", "D", "E")
LAST = "2011-03-01"


@pytest.fixture
async def data():
    async with DataHost({(name, "1d"): daily("2010-01-04", LAST, seed=at) for at, name in enumerate(LETTERS)}) as made:
        yield made


@pytest.fixture
def both(settings, data):
    """Opens an application with both domains."""

    @asynccontextmanager
    async def opening(host):
        changed = replace(
            settings, training_host_url=host.url, ib_host_url=data.url, pacing=False, as_of="2011-03-02T00:00:00+00:00"
        )
        async with open_app_async(settings=changed) as app:
            app.register(data_domain)
            app.register(domain)
            yield app

    return opening


async def children(app):
    page = await history.list_operations(app.journal, history.Filter(operation_type="model_train"))
    found = await history.children(app.journal, page.states[0].operation_id)
    return {child.key: child.status for child in found}


async def test_missing_series_are_loaded_side_by_side_as_children(both, data, host):
    async with both(host) as app:
        await app.run("data_load", symbol="A", timeframe="1d")
        asked = len(data.asked)
        data.fault = lambda asked: after(0.1, says(**data._historical(asked)))
        await train(app, symbols="A,B,C")
        loaded = await children(app)
        first = next(event.fact for event in await events(app, "progressed", "train_MLP_3"))
        state = await app.show("train_MLP_3")
    assert loaded == {"data_load:B:1d": "completed", "data_load:C:1d": "completed"}
    assert {each["symbol"] for each in data.asked[asked:]} == {"B", "C"}
    assert data.server.most_in_flight >= 2
    assert first.message == "Preparing data: 0 of 2 series loaded"
    assert state["status"] == "completed"


async def test_a_load_that_fails_fails_the_training_with_its_words(both, data, host):
    data.fault = lambda asked: failing("strange") if asked["symbol"] == "B" else None
    async with both(host) as app:
        with pytest.raises(DataServiceError, match="Data load failed for B"):
            await train(app, symbols="A,B")
        assert (await app.show("train_MLP_2"))["status"] == "failed"
        assert await children(app) == {"data_load:A:1d": "completed", "data_load:B:1d": "failed"}
        data.fault = lambda asked: None
        await train(app, symbols="A,B")
        assert (await app.show("train_MLP_2"))["attempt"] == 2
    assert len(host.sessions) == 1


async def test_a_cancel_while_series_are_loaded_cancels_the_loads(both, data, host):
    data.fault = lambda asked: hang
    async with both(host) as app:
        task = asyncio.create_task(train(app, symbols="A,B"))
        await data.server.until(lambda server: len(data.asked) == 2)
        await app.cancel("train_MLP_2")
        with pytest.raises(OperationCancelledException):
            await task
        assert set((await children(app)).values()) == {"cancelled"}
        [ended] = await events(app, "cancelled", "train_MLP_2")
    assert ended.fact.latency_ms < 1000
    assert not host.sessions


async def test_a_series_that_another_operation_is_loading_is_waited_for(both, data, host):
    hold, left = asyncio.Event(), [True]

    def held(asked):
        async def later(connection):
            await hold.wait()
            await says(**data._historical(asked))(connection)

        return later if left and left.pop() else None

    data.fault = held
    async with both(host) as app:
        load = asyncio.create_task(app.run("data_load", symbol="A", timeframe="1d"))
        await data.server.until(lambda server: bool(data.asked))
        task = asyncio.create_task(train(app, symbols="A"))
        waiting = await until_event(app, lambda event: event.type == "wait_started")
        hold.set()
        await load
        assert (await task).epochs == 5
        assert await children(app) == {}
    assert waiting.fact.reason.startswith("A 1d is being loaded by data_load_A_1d_")


async def test_five_trainings_and_five_loads_at_once_share_a_pool_and_mix_no_state(both, data):
    async with TrainingHost(2, pace=0.02, max_sessions=5) as host, both(host) as app:
        for name in LETTERS:
            await app.run("data_load", symbol=name, timeframe="1d")
        before = host.server.connections
        loads = [app.run("data_load", symbol=name, timeframe="1d", refresh=True) for name in LETTERS]
        trainings = [
            train(app, symbols=name, seed=100 + at, epochs=5 + at, start="2010-06-01")
            for at, name in enumerate(LETTERS)
        ]
        results = await asyncio.gather(*loads, *trainings)
        pools = {id(app.provider(name).connector.manager.host._pool) for name in ("data_load", "model_train")}
        page = await history.list_operations(app.journal, history.Filter(operation_type="model_train"))
        told = {state.operation_id: await app.events(state.operation_id) for state in page.states}
    assert len(pools) == 1
    assert host.server.connections - before <= 20
    assert len(host.sessions) == 5
    for at, name in enumerate(LETTERS):
        assert results[at].attrs["load"]["symbol"] == name
        result = results[5 + at]
        [mine] = [events for id, events in told.items() if result.session_id.startswith(id)]
        context = mine[0].fact.context
        assert (context["symbols"], context["seed"]) == ([name], 100 + at)
        kept = [event.fact for event in mine if event.type == "step_completed" and event.fact.name.startswith("epoch")]
        assert [fact.name for fact in kept] == [f"epoch {number}" for number in range(1, 6 + at)]
        losses = [
            event.fact.context["train_loss"] for event in mine if "train_loss" in getattr(event.fact, "context", {})
        ]
        assert losses == [58 + at + 1 / number for number in range(1, 6 + at)]
        percentages = [event.fact.percentage for event in mine if event.type == "progressed"]
        assert percentages == sorted(percentages)


async def test_the_typed_call_trains_on_a_framework_by_hand(host, settings):
    service = TrainingHostService(host.url)
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), service)
    training = TrainingDomainInterface(framework, settings=settings)
    told = []
    config = TrainingConfig(model_type="MLP", symbols=["TEST"], timeframes=["1d"], epochs=3)
    with pytest.raises(InvalidValue, match="no provider for the operation type 'data_load'"):
        await training.execute_training(config)

    await publish_on(framework, "TEST")
    result = await training.execute_training(config, told.append)
    await training.aclose()
    await service.aclose()
    await framework.aclose()
    assert result.epochs == 3
    assert result.training_metrics["train_loss"] == 1 / 3
    assert told[0].message == "Training MLP on TEST [1d]"
    assert "Training MLP epoch 2/3 (TEST)" in [state.message for state in told]
    assert told[-1].percentage == 100.0
