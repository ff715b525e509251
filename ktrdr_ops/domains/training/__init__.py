"""Models: training them on the training host service. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ktrdr_ops.core.domain import Command, Domain, DomainContext, OperationProvider, Option
from ktrdr_ops.core.progress import ProgressRenderer


def _providers(context: DomainContext) -> Mapping[str, OperationProvider]:
    from ktrdr_ops.domains.training.connector import TrainingSystemConnector
    from ktrdr_ops.domains.training.operations import TrainingOperationProvider

    address = partial(context.address, "training_host_url")
    connector = TrainingSystemConnector.from_settings(context.settings, context.pool, address=address)
    return {"model_train": TrainingOperationProvider(connector)}


def _renderer(operation_type: str) -> ProgressRenderer:
    from ktrdr_ops.domains.training.renderer import TrainingProgressRenderer

    return TrainingProgressRenderer()


domain = Domain(
    name="models",
    help="Train models on the series that are stored.",
    operation_types=("model_train",),
    providers=_providers,
    renderer=_renderer,
    fields=("model_type", "symbols", "timeframes", "strategy"),
    hosts=("training_host_url",),
    commands=(
        Command(
            name="train",
            help="Train a strategy's model; series that are missing are loaded first.",
            operation_type="model_train",
            options=(
                Option("strategy", "a strategy's YAML file (default: a built-in one)", type="path", positional=True),
                Option("symbols", "symbols with commas, such as AAPL,MSFT (default: the strategy's)"),
                Option("timeframe", "timeframes with commas: 1m 5m 15m 30m 1h 2h 4h 1d 1w 1M"),
                Option("epochs", "how many epochs at most", type="int"),
                Option("seed", "what every random number comes from", type="int"),
                Option("start", "train on bars from this day on (UTC)"),
                Option("end", "and up to this day, included"),
                Option("set", "change the strategy: model.training.learning_rate=0.01", many=True),
            ),
        ),
    ),
)
