"""The specification's examples, as they are written there (in the readings that were agreed), and its public names."""

from __future__ import annotations

import inspect
from dataclasses import fields
from datetime import timedelta

import pandas as pd
import pytest

import ktrdr_ops
from ktrdr_ops import (
    AsyncHostService,
    AsyncOperation,
    AsyncOrchestrationFramework,
    CancellationSystem,
    CancellationToken,
    GenericProgressManager,
    GenericProgressState,
    HostServiceError,
    OperationCancelledException,
    ProgressRenderer,
)
from ktrdr_ops.domains.data.interface import DataDomainInterface
from ktrdr_ops.domains.data.renderer import DataProgressRenderer
from ktrdr_ops.settings import load_settings
from tests.hosts.fixtures import data_host


def test_every_public_name_is_there_and_sorted():
    assert sorted(ktrdr_ops.__all__) == ktrdr_ops.__all__ == dir(ktrdr_ops)
    for name in ktrdr_ops.__all__:
        assert getattr(ktrdr_ops, name)
    with pytest.raises(AttributeError):
        _ = ktrdr_ops.nothing


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (AsyncOrchestrationFramework.__init__, ["self", "progress_manager", "cancellation_system", "host_service"]),
        (
            AsyncOrchestrationFramework.execute_operation,
            ["self", "operation", "operation_func", "progress_renderer"],
        ),
        (GenericProgressManager.__init__, ["self", "callback", "renderer"]),
        (GenericProgressManager.start_operation, ["self", "operation"]),
        (
            GenericProgressManager.update_progress,
            ["self", "current_step", "message", "items_processed", "context"],
        ),
        (CancellationSystem.cancel_operation, ["self", "operation_id"]),
        (CancellationToken.check_cancellation_point, ["self", "operation_name"]),
        (
            DataDomainInterface.execute_data_load,
            ["self", "symbol", "timeframe", "mode", "progress_callback"],
        ),
    ],
)
def test_signatures_begin_as_the_specification_has_them(function, names):
    assert parameters(function)[: len(names)] == names


def test_the_states_and_operations_fields_are_the_specifications():
    assert [field.name for field in fields(AsyncOperation)][:5] == [
        "operation_id",
        "operation_type",
        "total_steps",
        "estimated_duration",
        "context",
    ]
    assert [field.name for field in fields(GenericProgressState)] == [
        "operation_id",
        "current_step",
        "total_steps",
        "percentage",
        "message",
        "start_time",
        "estimated_remaining",
        "items_processed",
        "total_items",
        "context",
    ]


class SpecRenderer(ProgressRenderer):
    def render_progress_message(self, state: GenericProgressState) -> str:
        return f"Loading {state.context['symbol']} data: {state.message}"


class SpecInterface:
    """The specification's DataDomainInterface, its work a few updates."""

    def __init__(self, orchestrator: AsyncOrchestrationFramework):
        self.orchestrator = orchestrator
        self.progress_renderer = SpecRenderer()

    async def execute_data_load(self, symbol: str, timeframe: str, mode: str) -> pd.DataFrame:
        operation = AsyncOperation(
            operation_id=f"data_load_{symbol}_{timeframe}",
            operation_type="data_load",
            total_steps=5,
            estimated_duration=timedelta(seconds=3),
            context={"symbol": symbol, "timeframe": timeframe, "mode": mode},
        )
        loaded: pd.DataFrame = await self.orchestrator.execute_operation(
            operation=operation, operation_func=self._perform_data_load, progress_renderer=self.progress_renderer
        )
        return loaded

    async def _perform_data_load(
        self, operation: AsyncOperation, progress_manager: GenericProgressManager
    ) -> pd.DataFrame:
        for step in range(1, operation.total_steps + 1):
            progress_manager.update_progress(step, f"step {step}", items_processed=step, context={"bars": step})
        return pd.DataFrame({"close": [1.0]})


async def test_the_specifications_interface_runs_as_it_is_written():
    messages: list[str] = []
    framework = AsyncOrchestrationFramework(
        GenericProgressManager(callback=lambda state: messages.append(state.message)), CancellationSystem()
    )
    loaded = await SpecInterface(framework).execute_data_load("AAPL", "1h", "backfill")
    assert len(loaded) == 1
    assert messages[1] == "Loading AAPL data: step 1"
    assert len(messages) == 7
    await framework.aclose()


async def test_the_data_domain_loads_through_a_framework_that_a_script_made(tmp_path):
    with data_host() as url:
        environment = {
            "KTRDR_OPS_JOURNAL": str(tmp_path / "journal.db"),
            "KTRDR_OPS_DATA_DIR": str(tmp_path / "data"),
            "KTRDR_OPS_IB_HOST_URL": url,
            "KTRDR_OPS_PACING": "off",
            "KTRDR_OPS_AS_OF": "2013-03-02",
        }
        framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem())
        interface = DataDomainInterface(framework, settings=load_settings({}, environment=environment))
        assert isinstance(interface.progress_renderer, DataProgressRenderer)
        seen: list[str] = []
        bars = await interface.execute_data_load("GOOG", "1d", "full", lambda state: seen.append(state.message))
        assert len(bars) == 2148
        assert seen[0] == "Starting data load (GOOG 1d, full mode)"
        await interface.aclose()
        await framework.aclose()


def test_cancelling_is_as_specified():
    system = CancellationSystem()
    token = system.create_cancellation_token("one")
    assert system.cancel_operation("nobody") is False
    assert system.cancel_operation("one") is True
    assert token.is_cancelled()
    with pytest.raises(OperationCancelledException, match="loading"):
        token.check_cancellation_point("loading")
    assert system.cancel_all_operations() == 0


async def test_a_host_service_is_its_name_and_its_address():
    class Nowhere(AsyncHostService):
        def get_service_name(self) -> str:
            return "nowhere"

        def get_base_url(self) -> str:
            return "http://127.0.0.1:9"

    service = Nowhere()
    with pytest.raises(HostServiceError, match="nowhere"):
        await service.get("/anything")
    await service.aclose()
