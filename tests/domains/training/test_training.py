"""A training from its first event to its last, on a host that follows its script."""

from __future__ import annotations

from tests.domains.training.trainings import events, step_names, steps, train


async def test_a_training_tells_each_epoch_once_and_ends_with_its_result(opened, either):
    async with opened(either) as app:
        result = await train(app, epochs=7)
        shown = await app.show("@last")
        names = await step_names(app)
        kept = await steps(app)
        progressed = await events(app, "progressed")
    assert result.epochs == 7
    assert result.session_id == either.session.session_id
    assert shown["status"] == "completed"
    assert shown["result"]["session_id"] == result.session_id
    assert [name for name in names if name.startswith("epoch")] == [f"epoch {number}" for number in range(1, 8)]
    assert kept["epoch 7"]["train_loss"] == 1 / 7
    told = [event.fact for event in progressed if "train_loss" in event.fact.context]
    assert [fact.context["epoch"] for fact in told] == list(range(1, 8))
    assert [fact.items for fact in told] == list(range(1, 8))
    assert {fact.total_items for fact in told} == {7}
    percentages = [event.fact.percentage for event in progressed]
    assert percentages == sorted(percentages)
    assert told[-1].percentage == 96.0
