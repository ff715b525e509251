"""Where data, code and model came from, as far as that can be known."""

from __future__ import annotations

import hashlib
import json
import subprocess

import numpy as np
import pytest

from ktrdr_ops.domains.training.engine.models import canonical_sha256
from ktrdr_ops.domains.training.engine.provenance import git_commit
from tests.domains.training.trainings import events, publish_series, steps, train

ARRAYS: dict[str, np.ndarray] = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), dtype=np.float64)}
TYPES = {"f4": "F32", "f8": "F64"}


def save(arrays, metadata=None):
    """The arrays as a safetensors file: the length of a JSON header, the header, the values."""
    header, values = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        begin = len(values)
        values += array.tobytes()
        kind = TYPES[array.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, len(values)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def sha(content):
    return hashlib.sha256(content).hexdigest()


def told(path, content, symbol="TEST"):
    return {"symbol": symbol, "timeframe": "1d", "path": str(path), "sha256": sha(content), "rows": 90}


async def data_of(opened, host, **changes):
    """The result's one series and what was recorded as input."""
    async with opened(host, **changes) as app:
        result = await train(app)
        [used] = (await steps(app))["inputs"]
        published = await app.catalogue.latest("series", "TEST:1d")
    return result.data[0], used, published


async def test_a_real_hosts_data_is_unknown_and_no_hash_is_claimed(opened, either):
    data, used, _ = await data_of(opened, either)
    assert data.model_dump() == {
        "symbol": "TEST", "timeframe": "1d", "sha256": None, "rows": None, "operation_id": None, "evidence": "unknown"
    }  # fmt: skip
    assert used["key"] == "TEST:1d"
    assert (used["sha256"], used["object"], used["operation_id"], used["evidence"]) == (None, None, None, "unknown")


async def test_a_file_of_the_shared_folder_with_the_same_hash_on_both_sides_is_evidence(opened, host, settings):
    path = settings.data_dir / "TEST" / "1d.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"bars")
    host.files = [told(path, b"bars")]
    data, used, published = await data_of(opened, host)
    assert (data.evidence, data.sha256, data.rows) == ("shared_folder", "c" * 64, 100)
    assert data.operation_id == published.operation_id == used["operation_id"]
    assert used["object"] == published.object


@pytest.mark.parametrize("here", [b"other bars", None], ids=["other", "absent"])
async def test_a_file_that_is_not_the_same_here_is_no_evidence(opened, host, settings, here):
    path = settings.data_dir / "TEST" / "1d.parquet"
    path.parent.mkdir(parents=True)
    if here is not None:
        path.write_bytes(here)
    host.files = [told(path, b"bars")]
    data, _, _ = await data_of(opened, host)
    assert (data.evidence, data.sha256, data.operation_id) == ("unknown", None, None)


async def test_a_file_outside_of_the_data_folder_is_no_evidence(opened, host, settings, tmp_path):
    (tmp_path / "1d.parquet").write_bytes(b"bars")
    settings.data_dir.mkdir()
    host.files = [told(tmp_path / "1d.parquet", b"bars")]
    data, _, _ = await data_of(opened, host)
    assert data.evidence == "unknown"


async def test_the_embedded_hosts_file_with_the_hash_of_what_was_published_is_our_own(opened, host):
    host.files = [told("/elsewhere/TEST/1d.parquet", b"bars")]
    async with opened(host) as app:
        app.provider("model_train").connector.manager.own_host = True
        result = await train(app)
    assert result.data[0].evidence == "own"
    assert result.data[0].sha256 == "c" * 64


async def test_a_series_published_before_the_last_one_is_found_by_its_hash(opened, host):
    host.files = [told("/elsewhere/TEST/1d.parquet", b"bars")]
    async with opened(host) as app:
        app.provider("model_train").connector.manager.own_host = True
        first = await app.catalogue.latest("series", "TEST:1d")
        await publish_series(app, "TEST", b"newer bars", "d" * 64, again=True)
        result = await train(app)
    assert result.data[0].operation_id == first.operation_id


async def test_a_model_that_can_be_read_here_is_published_and_put_in_its_place(opened, host, settings, tmp_path):
    content = save(ARRAYS, metadata={"any": "thing"})
    path = tmp_path / "hosts.safetensors"
    path.write_bytes(content)
    host.model = {"model_path": str(path), "model_info": {"type": "mlp", "sha256": canonical_sha256(content)}}
    async with opened(host) as app:
        result = await train(app)
        shown = await app.show("@last")
        [published] = await events(app, "artifact_published")
        kept = app.objects.read(published.fact.object)
    ours = settings.models_dir / f"{shown['operation_id']}.safetensors"
    assert result.model_path == str(ours) == published.fact.name
    assert ours.read_bytes() == kept == content
    assert result.sha256 == published.fact.sha256 == canonical_sha256(content)
    assert published.fact.kind == "model"
    assert shown["key"] == f"model_train:{published.fact.key}"


@pytest.mark.parametrize("claimed", ["f" * 64, None])
async def test_a_model_that_is_not_what_the_host_says_stays_on_the_host(opened, host, tmp_path, claimed):
    path = tmp_path / "hosts.safetensors"
    path.write_bytes(save(ARRAYS))
    host.model = {"model_path": str(path), "model_info": {"sha256": claimed}}
    async with opened(host) as app:
        result = await train(app)
        assert not await events(app, "artifact_published")
    assert (result.model_path, result.sha256) == (str(path), None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
async def test_a_file_that_is_no_model_is_left_alone(opened, host, tmp_path, content):
    path = tmp_path / "hosts.safetensors"
    path.write_bytes(content)
    host.model = {"model_path": str(path), "model_info": {"sha256": "f" * 64}}
    async with opened(host) as app:
        assert (await train(app)).sha256 is None


def test_the_canonical_hash_is_of_names_types_shapes_and_values():
    expected = hashlib.sha256(
        b"a\0F64\x002,2\0" + np.ones(4, "<f8").tobytes() + b"b\0F32\x003\0" + np.arange(3, dtype="<f4").tobytes()
    )
    assert canonical_sha256(save(ARRAYS)) == expected.hexdigest()
    assert canonical_sha256(save(dict(reversed(ARRAYS.items())), metadata={"x": "y"})) == expected.hexdigest()
    assert canonical_sha256(save({**ARRAYS, "b": ARRAYS["b"] + 1})) != expected.hexdigest()


def test_the_hash_reads_what_the_library_writes():
    library = pytest.importorskip("safetensors.numpy")
    assert canonical_sha256(library.save(ARRAYS, {"x": "y"})) == canonical_sha256(save(ARRAYS))


def test_the_git_commit_is_found_in_files_and_null_without_a_repository(tmp_path):
    assert git_commit(tmp_path / "none") is None

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", ".")
    assert git_commit(tmp_path) is None
    git("commit", "-q", "--allow-empty", "-m", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") == head
    git("pack-refs", "--all")
    assert git_commit(tmp_path) == head
    git("checkout", "-q", "--detach")
    assert git_commit(tmp_path) == head
    git("worktree", "add", "-q", str(tmp_path / "tree"), "HEAD")
    assert git_commit(tmp_path / "tree") == head


async def test_the_result_names_versions_seed_and_commit(opened, host):
    host.model = {"model_info": {"versions": {"jax": "0.10"}}}
    async with opened(host) as app:
        result = await train(app, seed=7)
        shown = await app.show("@last")
    assert result.versions["jax"] == "0.10"
    assert {"ktrdr-ops", "python"} <= set(result.versions)
    assert result.seed == 7
    assert json.loads(json.dumps(shown["result"])) == result.model_dump()
