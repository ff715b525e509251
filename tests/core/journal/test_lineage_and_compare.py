"""Walks from what an operation was made to what was made from it, and operations beside one another."""

from __future__ import annotations

import hashlib

import pytest

from ktrdr_ops.core.artifacts import Publication
from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import InvalidValue, OperationNotFound
from ktrdr_ops.core.journal.compare import compare, flattened
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.lineage import lineage, source
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager


@pytest.fixture
async def framework(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    made = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    yield made
    await made.aclose()
    await journal.aclose()


async def made(framework, name, *uses, content=b"", parameters=None, path=None):
    """An operation that uses inputs, publishes content and tells a falling number; gives its id and its artifact."""
    ids = []

    async def work(operation, progress, token, attempt):
        ids.append(operation.operation_id)
        await attempt.uses(*uses)
        for number in range(1, 4):
            progress.update_progress(number, "going on", context={"loss": (parameters or {}).get("rate", 1) / number})
        stored = attempt.objects.put(content)
        sha256 = hashlib.sha256(b"canonical" + content).hexdigest()
        (artifact,) = await attempt.publish(
            Publication(kind="thing", key=name, object=stored, sha256=sha256, size=len(content), name=path)
        )
        return {"rows": 3, "nested": {"rate": (parameters or {}).get("rate"), "same": True}}, artifact

    operation = AsyncOperation(name, "make", total_steps=3, key=f"make:{name}", parameters=parameters or {})
    _, artifact = await framework.execute_operation(operation, work, summarise=lambda value: value[0])
    return ids[0], artifact


def used(artifact, **more):
    ours = {"sha256": artifact.sha256, "object": artifact.object, "operation_id": artifact.operation_id}
    return {"kind": artifact.kind, "key": artifact.key, **ours, "evidence": "own", **more}


async def test_a_walk_goes_both_ways_with_the_evidence(framework):
    raw, stored = await made(framework, "raw", content=b"raw")
    middle, better = await made(framework, "middle", used(stored), content=b"middle")
    end, _ = await made(framework, "end", used(better, evidence="shared_folder"), content=b"end")
    up = await lineage(framework.journal, end)
    assert up["inputs"][0]["evidence"] == "shared_folder"
    assert up["inputs"][0]["operation"]["operation_id"] == middle
    assert up["inputs"][0]["operation"]["inputs"][0]["operation"]["operation_id"] == raw
    down = await lineage(framework.journal, raw)
    (consumer,) = down["outputs"][0]["consumers"]
    assert (consumer["operation_id"], consumer["evidence"]) == (middle, "own")
    assert consumer["outputs"][0]["consumers"][0]["operation_id"] == end
    assert down["inputs"] == []


async def test_nothing_is_inferred_from_names_alone(framework):
    raw, stored = await made(framework, "raw", content=b"raw")
    unknown = {"kind": "thing", "key": "raw", "sha256": None, "operation_id": None, "evidence": "unknown"}
    end, _ = await made(framework, "end", unknown, content=b"end")
    assert (await lineage(framework.journal, raw))["outputs"][0]["consumers"] == []
    (one,) = (await lineage(framework.journal, end))["inputs"]
    assert (one["evidence"], one["operation"]) == ("unknown", None)
    gone, _ = await made(framework, "more", used(stored, operation_id="was_never_there"), content=b"more")
    assert (await lineage(framework.journal, gone))["inputs"][0]["operation"] is None


async def test_a_circle_ends(framework):
    _, stored = await made(framework, "raw", content=b"raw")
    first, again = await made(framework, "first", used(stored), content=b"first")

    async def circular(operation, progress, token, attempt):
        await attempt.uses(used(again), {**used(stored), "operation_id": operation.operation_id})

    await framework.execute_operation(AsyncOperation("circle", "make", total_steps=1), circular)
    assert (await lineage(framework.journal, first))["outputs"][0]["consumers"]


async def test_a_file_is_known_by_its_bytes_and_by_its_name(framework, tmp_path):
    path = tmp_path / "thing.bin"
    path.write_bytes(b"raw")
    raw, _ = await made(framework, "raw", content=b"raw", path=str(path))
    copy = tmp_path / "copy.bin"
    copy.write_bytes(b"raw")
    assert (await source(framework.journal, copy)).artifact.operation_id == raw
    path.write_bytes(b"changed")
    found = await source(framework.journal, path)
    assert (found.artifact.operation_id, found.same) == (raw, False)
    path.unlink()
    assert (await source(framework.journal, path)).same is None
    with pytest.raises(OperationNotFound, match="no operation published"):
        await source(framework.journal, tmp_path / "none")


async def test_only_what_differs_is_left_with_the_curves_of_what_was_told(framework):
    slow, _ = await made(framework, "slow", content=b"a", parameters={"rate": 4, "seed": 1, "deep": {"x": [1, 2]}})
    fast, _ = await made(framework, "fast", content=b"b", parameters={"rate": 2, "seed": 1, "deep": {"x": [1, 2]}})
    found = await compare(framework.journal, [slow, fast])
    assert [dict(one.parameters) for one in found.operations] == [{"rate": 4}, {"rate": 2}]
    assert [dict(one.result) for one in found.operations] == [{"nested.rate": 4}, {"nested.rate": 2}]
    assert found.equal == {"parameters": 2, "result": 2, "curves": 0}
    curve = found.operations[1].curves["loss"]
    assert curve.values == (2.0, 1.0, 2 / 3)
    assert curve.document()["final"] == curve.document()["lowest"]
    assert set(curve.attempts) == {1}
    assert found.sorted_by("loss").operations[0].state.operation_id == fast
    assert found.sorted_by("-rate").operations[0].state.operation_id == slow
    with pytest.raises(InvalidValue, match="nothing that differs is a number called 'speed'"):
        found.sorted_by("speed")


async def test_a_number_that_was_only_told_again_makes_no_other_curve(framework):
    async def counted(name, numbers):
        async def work(operation, progress, token, attempt):
            for step, number in enumerate(numbers, 1):
                progress.update_progress(step, f"{step}", context={"count": number})
            return operation.operation_id

        return await framework.execute_operation(AsyncOperation(name, "make", total_steps=len(numbers)), work)

    once, again, other = [await counted(f"c{i}", numbers) for i, numbers in enumerate(([1, 2], [1, 1, 2], [1, 2, 1]))]
    assert (await compare(framework.journal, [once, again])).names("curves") == []
    assert (await compare(framework.journal, [once, other])).names("curves") == ["count"]


def test_nested_values_are_named_by_their_path():
    assert flattened({"a": {"b": 1}, "c": [1, 2], "d": [{"e": 3}], "f": {}}) == {
        "a.b": 1, "c": [1, 2], "d.0.e": 3, "f": {},
    }  # fmt: skip


async def test_what_a_child_made_is_no_input_where_the_operation_says_what_its_inputs_are(framework):
    async def parent(operation, progress, token, attempt):
        child = AsyncOperation("raw", "make", total_steps=1, parent_id=operation.operation_id)

        async def work(operation, progress, token, attempt):
            stored = attempt.objects.put(b"raw")
            await attempt.publish(Publication(kind="thing", key="raw", object=stored, sha256="c" * 64, size=3))

        await framework.execute_operation(child, work)
        if evidence == "unknown":
            await attempt.uses({"kind": "thing", "key": "raw", "sha256": None, "evidence": "unknown"})
        return operation.operation_id

    for evidence in ("unknown", "child"):
        name = f"parent_{evidence}"
        operation_id = await framework.execute_operation(AsyncOperation(name, "make", total_steps=1), parent)
        inputs = (await lineage(framework.journal, operation_id))["inputs"]
        assert [one["evidence"] for one in inputs] == [evidence]
