"""Both generations of the embedded training host, call by call over real HTTP, each in a process of its own."""

from __future__ import annotations

import signal
import time
from itertools import count, pairwise

import httpx
import pytest
import yaml

from ktrdr_ops.domains.training.engine.models import canonical_sha256
from tests.hosts.fixtures import sample_series, training_host

NUMBERS = count(1)
ENDED = ("completed", "failed", "stopped", "cancelled")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return sample_series(tmp_path_factory.mktemp("data"), "AAPL", "GOOG", since="2010")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def _second(data_dir, models_dir):
    with training_host(data_dir, models_dir, max_sessions=2) as host, client(host) as asking:
        yield asking


@pytest.fixture(scope="module")
def _first(data_dir, tmp_path_factory):
    with training_host(data_dir, tmp_path_factory.mktemp("models"), generation=1) as host, client(host) as asking:
        yield asking


@pytest.fixture
def second(_second):
    yield _second
    quiet(_second)


@pytest.fixture
def first(_first):
    yield _first
    for session in _first.get("/training/sessions").json()["sessions"]:
        _first.post("/training/stop", json={"session_id": session["session_id"]})


def client(host) -> httpx.Client:
    return httpx.Client(base_url=host.url, timeout=30, trust_env=False)


def quiet(host: httpx.Client) -> None:
    """Cancel what runs, and wait until it has stopped."""
    for session in running(host):
        host.delete(f"/api/v1/operations/{session}/cancel")
    until(lambda: not running(host))


def running(host: httpx.Client) -> list[str]:
    sessions = host.get("/training/sessions").json()["sessions"]
    return [each["session_id"] for each in sessions if each["status"] not in ENDED]


def until(condition, seconds: float = 40.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def strategy(**training) -> str:
    usual = {"epochs": 3, "batch_size": 64, "seed": 5, "checkpoint_every": 2, "learning_rate": 0.0005}
    model = {"type": "mlp", "architecture": {"hidden_layers": [8]}, "training": {**usual, **training}}
    return yaml.safe_dump({"name": "test", "model": model})


FOREVER = 1_000_000


def start(host: httpx.Client, session: str | None = None, **training):
    body = {"session_id": session, "strategy_yaml": strategy(**training), "symbols": ["AAPL"], "timeframes": ["1d"]}
    return host.post("/training/start", json=body)


def started(host: httpx.Client, **training) -> str:
    session = f"s{next(NUMBERS)}"
    answer = start(host, session, **training)
    assert answer.status_code == 200, answer.text
    return session


def operation(host: httpx.Client, session: str) -> dict:
    found: dict = host.get(f"/api/v1/operations/{session}").json()["data"]
    return found


def epochs_of(host: httpx.Client, session: str) -> list[dict]:
    records: list[dict] = host.get(f"/api/v1/operations/{session}/metrics").json()["data"]["metrics"][0]
    return records


def ended(host: httpx.Client, session: str) -> dict:
    found: dict = until(lambda: (now := operation(host, session))["status"] in ENDED and now)
    return found


def result_of(host: httpx.Client, session: str) -> dict:
    assert ended(host, session)["status"] == "completed"
    answer = host.get(f"/training/result/{session}")
    assert answer.status_code == 200
    found: dict = answer.json()
    return found


# The current generation


def test_a_start_answers_with_the_id_that_was_sent(second):
    answer = start(second, "mine")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {
        "session_id", "operation_id", "status", "message", "gpu_allocated", "estimated_duration_minutes",
    }  # fmt: skip
    assert (body["session_id"], body["operation_id"], body["status"]) == ("mine", "mine", "started")
    assert body["estimated_duration_minutes"] is None
    again = start(second, "mine")
    assert (again.status_code, again.json()["detail"]) == (409, "Session conflict: Session mine already exists")
    named = second.post("/training/start", json={"strategy_yaml": strategy(), "task_id": "task", "symbols": ["AAPL"],
                                                 "timeframes": ["1d"]})  # fmt: skip
    assert named.json()["session_id"] == "task"


def test_a_training_that_completes_has_epochs_a_result_and_a_model(second, data_dir):
    session = started(second, epochs=4)
    result = result_of(second, session)
    assert {"model_path", "model_info", "training_metrics", "test_metrics", "data_summary", "artifacts",
            "resource_usage", "session_id", "status", "start_time", "last_updated"} <= set(result)  # fmt: skip
    with open(result["model_path"], "rb") as file:
        assert canonical_sha256(file.read()) == result["model_info"]["sha256"]
    assert result["training_metrics"]["epochs_trained"] == 4
    assert set(result["test_metrics"]) == {"test_accuracy", "test_loss", "precision", "recall", "f1_score"}
    assert set(result["per_symbol_metrics"]) == {"AAPL"}
    [file] = result["data_summary"]["files"]
    assert file["path"] == str(data_dir / "AAPL_1d.csv")
    assert result["data_summary"]["total_samples"] > 0
    records = epochs_of(second, session)
    assert [each["epoch"] for each in records] == [0, 1, 2, 3]
    assert set(records[0]) == {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate",
                               "duration", "timestamp"}  # fmt: skip
    best = min(records, key=lambda each: each["val_loss"])
    assert result["training_metrics"]["best_epoch"] == best["epoch"] + 1
    assert result["training_metrics"]["val_loss"] == best["val_loss"]


def test_metrics_from_a_cursor_on_are_only_what_is_new(second):
    session = started(second)
    ended(second, session)
    body = second.get(f"/api/v1/operations/{session}/metrics", params={"cursor": 2}).json()
    assert body["success"]
    assert set(body["data"]) == {"operation_id", "operation_type", "metrics", "cursor"}
    [records, cursor] = body["data"]["metrics"]
    assert ([each["epoch"] for each in records], cursor, body["data"]["cursor"]) == ([2], 3, 3)
    [none, cursor] = second.get(f"/api/v1/operations/{session}/metrics", params={"cursor": 3}).json()["data"]["metrics"]
    assert (none, cursor) == ([], 3)


def test_an_operation_is_told_as_a_whole_and_in_a_list(second):
    session = started(second, epochs=FOREVER)
    info = until(lambda: (now := operation(second, session))["status"] == "running" and epochs_of(second, session)
                 and now)  # fmt: skip
    assert set(info) == {
        "operation_id", "parent_operation_id", "operation_type", "status", "created_at", "started_at", "completed_at",
        "progress", "metadata", "error_message", "warnings", "errors", "result_summary", "metrics", "is_backend_local",
    }  # fmt: skip
    assert set(info["progress"]) == {
        "percentage", "current_step", "steps_completed", "steps_total", "items_processed", "items_total",
        "current_item", "context",
    }  # fmt: skip
    assert set(info["metadata"]) == {"symbol", "timeframe", "mode", "start_date", "end_date", "parameters"}
    listed = second.get("/api/v1/operations", params={"active_only": True, "operation_type": "training"}).json()
    assert (listed["success"], listed["total_count"], listed["active_count"]) == (True, 1, 1)
    [summary] = listed["data"]
    assert set(summary) == {"operation_id", "operation_type", "status", "created_at", "progress_percentage",
                            "current_step", "symbol", "duration_seconds"}  # fmt: skip
    assert (summary["operation_id"], summary["symbol"]) == (session, "AAPL")
    assert second.get("/api/v1/operations", params={"status": "pending", "limit": 1}).json()["data"] == []


def test_a_session_that_is_not_known_is_a_404_and_a_result_before_its_time_a_400(second):
    for path in ("/training/result/none", "/api/v1/operations/none", "/api/v1/operations/none/metrics"):
        assert second.get(path).status_code == 404
    session = started(second, epochs=FOREVER)
    until(lambda: operation(second, session)["status"] == "running")
    early = second.get(f"/training/result/{session}")
    assert (early.status_code, early.json()["detail"]) == (400, "Training not completed yet (status: running)")


def test_more_sessions_than_the_host_takes_are_told_that_it_is_busy(second):
    sessions = [started(second, epochs=FOREVER) for _ in range(2)]
    third = start(second, "third")
    assert third.status_code == 503
    assert third.json()["detail"].startswith("Service temporarily unavailable: Maximum concurrent sessions (2) reached")
    assert start(second, sessions[0]).status_code == 409, "its own session is no reason to be busy"
    quiet(second)
    assert start(second, "third").status_code == 200


def test_health_says_busy_while_a_session_trains(second):
    assert second.get("/health").json()["worker_status"] == "idle"
    session = started(second, epochs=FOREVER)
    body = second.get("/health").json()
    assert set(body) == {"healthy", "service", "timestamp", "status", "worker_status", "current_operation"}
    assert (body["healthy"], body["service"]) == (True, "training-worker")
    assert (body["worker_status"], body["current_operation"]) == ("busy", session)
    quiet(second)
    assert second.get("/health").json()["worker_status"] == "idle"


def test_a_cancel_answers_at_once_and_the_training_stops_within_a_batch(second):
    session = started(second, epochs=FOREVER)
    until(lambda: epochs_of(second, session))
    asked = time.monotonic()
    answer = second.delete(f"/api/v1/operations/{session}/cancel", params={"reason": "enough"}).json()
    assert (answer["success"], answer["data"]["success"]) == (True, True)
    until(lambda: not running(second))
    assert time.monotonic() - asked < 2
    assert operation(second, session)["status"] == "cancelled"
    [listed] = [each for each in second.get("/training/sessions").json()["sessions"] if each["session_id"] == session]
    assert listed["status"] == "stopped"
    again = second.delete(f"/api/v1/operations/{session}/cancel").json()
    assert (again["success"], again["data"]["success"]) == (True, False)
    unknown = second.delete("/api/v1/operations/none/cancel")
    assert (unknown.status_code, unknown.json()["success"], unknown.json()["data"]["success"]) == (200, True, False)


def test_a_session_can_be_dropped_when_it_is_over(second):
    session = started(second, epochs=FOREVER)
    while_it_runs = second.delete(f"/training/sessions/{session}")
    assert (while_it_runs.status_code, "running" in while_it_runs.json()["detail"]) == (500, True)
    quiet(second)
    dropped = second.delete(f"/training/sessions/{session}").json()
    assert (dropped["session_id"], dropped["status"]) == (session, "cleaned_up")
    assert second.get(f"/api/v1/operations/{session}").status_code == 404
    assert second.delete(f"/training/sessions/{session}").status_code == 500


def test_a_training_without_its_data_fails_and_says_why(second):
    body = {"session_id": "nodata", "strategy_yaml": strategy(), "symbols": ["NONE"], "timeframes": ["1d"]}
    assert second.post("/training/start", json=body).status_code == 200
    info = ended(second, "nodata")
    assert info["status"] == "failed"
    assert info["error_message"].startswith("No data for NONE 1d: there is neither ")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"strategy_yaml": 3}, 422),
        ({"strategy_yaml": "model: {}", "session_id": "../up"}, 422),
        ({"strategy_yaml": "model: {}", "session_id": "a/b"}, 422),
        ({"strategy_yaml": "model: {}", "symbols": "AAPL"}, 422),
        ({"strategy_yaml": "["}, 422),
        ({"strategy_yaml": "model: {type: cnn}", "symbols": ["AAPL"], "timeframes": ["1d"]}, 422),
        ({"strategy_yaml": "model: {}", "symbols": ["../x"], "timeframes": ["1d"]}, 422),
    ],
)
def test_a_start_that_cannot_be_meant_is_refused(second, body, status):
    answer = second.post("/training/start", json=body)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert not running(second)


def test_the_calls_of_the_first_generation_are_not_there(second):
    assert second.get("/training/status/x").status_code == 404
    assert second.post("/training/stop", json={"session_id": "x"}).status_code == 404


def test_who_calls_it_by_another_name_gets_nothing(second):
    assert second.get("/health", headers={"Host": "rebound.example"}).status_code == 403
    assert second.delete("/api/v1/operations/x/cancel", headers={"Host": "rebound.example"}).status_code == 403


def test_the_same_seed_gives_the_same_model_and_another_seed_another(second):
    first, again, other = (result_of(second, started(second, seed=seed))["model_info"]["sha256"] for seed in (1, 1, 2))
    assert first == again != other


def test_two_at_once_do_not_mix(second):
    alone = [result_of(second, started(second, seed=seed, epochs=20)) for seed in (1, 2)]
    together = [started(second, seed=seed, epochs=20) for seed in (1, 2)]
    for before, session in zip(alone, together, strict=True):
        assert result_of(second, session)["model_info"]["sha256"] == before["model_info"]["sha256"]


def test_it_goes_on_answering_while_two_train(second):
    for _ in range(2):
        started(second, epochs=FOREVER)
    until(lambda: all(each["progress"]["epoch"] for each in second.get("/training/sessions").json()["sessions"][-2:]))
    waited = []
    for _ in range(20):
        began = time.monotonic()
        second.get("/health")
        waited.append(time.monotonic() - began)
    assert sorted(waited)[10] < 0.5, waited


# Going on


@pytest.mark.slow
def test_a_session_that_goes_on_from_a_cancelled_one_gives_the_undisturbed_model(second):
    asked = {"epochs": 400, "batch_size": 8, "learning_rate": 0.00002}
    whole = result_of(second, started(second, **asked))
    cut = started(second, **asked)
    until(lambda: len(epochs_of(second, cut)) >= 3)
    quiet(second)
    done = len(epochs_of(second, cut))
    assert operation(second, cut)["status"] == "cancelled"
    resumed = result_of(second, started(second, **asked, resume_from=cut))
    assert whole["training_metrics"]["best_epoch"] > done
    assert resumed["model_info"]["sha256"] == whole["model_info"]["sha256"]
    records = epochs_of(second, resumed["session_id"])
    assert records[:done] == epochs_of(second, cut)
    assert [each["epoch"] for each in records] == list(range(400))
    anew = started(second, epochs=2, seed=99, resume_from=cut)
    assert result_of(second, anew)["training_metrics"]["epochs_trained"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_host_that_ended_leaves_checkpoints_that_the_next_one_goes_on_from(data_dir, tmp_path, how):
    with training_host(data_dir, tmp_path, pace=0.05) as host, client(host) as asking:
        session = started(asking, epochs=FOREVER)
        until(lambda: len(epochs_of(asking, session)) >= 5)
        host.process.send_signal(how)
        assert host.process.wait(10) == (-how if how == signal.SIGKILL else 143)
    with training_host(data_dir, tmp_path) as host, client(host) as asking:
        assert asking.get(f"/api/v1/operations/{session}").status_code == 404
        resumed = started(asking, epochs=8, resume_from=session)
        assert result_of(asking, resumed)["training_metrics"]["epochs_trained"] == 8
        times = [each["timestamp"] for each in epochs_of(asking, resumed)]
        began = operation(asking, resumed)["started_at"]
        earlier = [moment for moment in times if moment < began]
        assert len(earlier) >= (5 if how == signal.SIGTERM else 4)
        assert len(times) == 8
        assert not list(tmp_path.rglob("*.tmp"))


# A cancel that lies


@pytest.mark.slow
def test_a_cancel_that_lies_answers_success_and_the_training_goes_on(data_dir, models_dir):
    with training_host(data_dir, models_dir, lying_cancel=True, pace=0.02) as host, client(host) as asking:
        session = started(asking, epochs=FOREVER)
        until(lambda: epochs_of(asking, session))
        answer = asking.delete(f"/api/v1/operations/{session}/cancel").json()
        assert (answer["success"], answer["data"]["success"]) == (True, True)
        assert asking.get("/health").json()["worker_status"] == "idle"
        seen = len(epochs_of(asking, session))
        until(lambda: len(epochs_of(asking, session)) > seen + 3)
        assert running(asking) == [session]
        assert start(asking, "next").status_code == 503


# The first generation


def first_body(session: str | None, **training):
    return {
        "session_id": session,
        "model_configuration": {
            "strategy_config": yaml.safe_load(strategy()), "symbols": ["AAPL"], "timeframes": ["1d"],
            "model_type": "mlp", "multi_symbol": False,
        },
        "training_configuration": {"epochs": 3, "batch_size": 32, "seed": 5, "early_stopping_patience": 9, **training},
        "data_configuration": {"symbols": ["AAPL"], "timeframes": ["1d"], "start_date": "2010-06-01"},
    }  # fmt: skip


def first_started(host: httpx.Client, **training) -> str:
    session = f"f{next(NUMBERS)}"
    answer = host.post("/training/start", json=first_body(session, **training))
    assert answer.status_code == 200, answer.text
    return session


def status_of(host: httpx.Client, session: str) -> dict:
    answer = host.get(f"/training/status/{session}")
    assert answer.status_code == 200
    found: dict = answer.json()
    return found


def test_first_health_has_no_word_of_a_worker(first):
    for path in ("/health", "/health/", "/health/detailed"):
        body = first.get(path).json()
        assert body["healthy"]
        assert {"gpu_status", "system_info"} <= set(body)
        assert "worker_status" not in body


def test_first_a_training_is_followed_by_its_status_and_leaves_nothing_else(first, tmp_path):
    session = f"f{next(NUMBERS)}"
    answer = first.post("/training/start", json=first_body(session, estimated_duration_minutes=7))
    body = answer.json()
    assert set(body) == {"session_id", "status", "message", "gpu_allocated", "estimated_duration_minutes"}
    assert (body["session_id"], body["status"], body["estimated_duration_minutes"]) == (session, "started", 7)
    found = until(lambda: (now := status_of(first, session))["status"] in ENDED and now)
    assert set(found) == {"session_id", "status", "progress", "metrics", "gpu_usage", "start_time", "last_updated",
                          "error"}  # fmt: skip
    assert found["status"] == "completed"
    assert found["progress"]["epoch"] == found["progress"]["total_epochs"] == 3
    assert found["progress"]["progress_percent"] == 100
    assert found["progress"]["batch"] == found["progress"]["total_batches"] + 1
    assert set(found["metrics"]) == {"loss", "accuracy", "epoch_loss", "epoch_accuracy", "total_batches", "device"}
    assert [len(values) for values in found["metrics"].values()] == [3] * 6
    for path in (f"/training/result/{session}", f"/api/v1/operations/{session}", "/api/v1/operations"):
        assert first.get(path).status_code == 404


def test_first_every_failure_is_a_500_with_a_text(first):
    session = first_started(first, epochs=FOREVER)
    failures = [
        ("POST", "/training/start", first_body(session), f"Failed to start training: Session {session} already exists"),
        ("POST", "/training/start", first_body("other"),
         "Failed to start training: Maximum concurrent sessions (1) reached"),
        ("GET", "/training/status/none", None, "Failed to get training status: Session none not found"),
        ("POST", "/training/stop", {"session_id": "none"}, "Failed to stop training: Session none not found"),
        ("DELETE", f"/training/sessions/{session}", None,
         f"Failed to cleanup session: Session {session} is still running"),
        ("DELETE", "/training/sessions/none", None, "Failed to cleanup session: Session none not found"),
    ]  # fmt: skip
    for method, path, body, detail in failures:
        answer = first.request(method, path, json=body)
        assert (answer.status_code, answer.json()["detail"]) == (500, detail)
    assert first.post("/training/start", json={"session_id": "x"}).status_code == 422


def test_first_what_can_never_be_trained_is_refused_as_a_bad_body_is(first):
    answer = first.post("/training/start", json=first_body("fast", learning_rate="fast"))
    assert (answer.status_code, "learning_rate is 'fast'" in answer.json()["detail"]) == (422, True)


def test_first_a_stop_answers_when_the_training_has_stopped(first):
    session = first_started(first, epochs=FOREVER)
    until(lambda: status_of(first, session)["metrics"]["epoch_loss"])
    answer = first.post("/training/stop", json={"session_id": session, "save_checkpoint": False}).json()
    assert set(answer) == {"session_id", "status", "message", "checkpoint_saved"}
    assert (answer["status"], answer["checkpoint_saved"]) == ("stopped", False)
    assert status_of(first, session)["status"] == "stopped"
    again = first.post("/training/stop", json={"session_id": session})
    assert again.status_code == 500
    assert again.json()["detail"] == f"Failed to stop training: Session {session} is not running (status: stopped)"
    listed = first.get("/training/sessions").json()
    assert set(listed) == {"total_sessions", "sessions", "timestamp"}
    assert set(listed["sessions"][0]) == {"session_id", "status", "start_time", "last_updated", "progress",
                                          "gpu_allocated", "error"}  # fmt: skip
    dropped = first.delete(f"/training/sessions/{session}").json()
    assert (set(dropped), dropped["status"]) == ({"session_id", "status", "message"}, "cleaned_up")


def test_first_its_lists_only_grow_and_its_epoch_counts_from_zero(first):
    session = first_started(first, epochs=300)
    seen = [status_of(first, session)]
    while seen[-1]["status"] not in ENDED and len(seen) < 5000:
        seen.append(status_of(first, session))
    assert seen[-1]["status"] == "completed"
    epochs = [now["progress"]["epoch"] for now in seen]
    losses = [now["metrics"]["epoch_loss"] for now in seen]
    assert epochs == sorted(epochs)
    assert all(later[: len(before)] == before for before, later in pairwise(losses))


# The process


@pytest.mark.slow
def test_an_idle_host_ends_but_never_while_a_session_trains(data_dir, tmp_path):
    with training_host(data_dir, tmp_path, idle_exit=0.5, pace=0.3) as host, client(host) as asking:
        started(asking, epochs=6)
        began = time.monotonic()
        assert host.process.wait(30) == 0
        assert time.monotonic() - began > 6 * 0.3
        assert list(tmp_path.rglob("s*.safetensors")), "it completed"


@pytest.mark.slow
def test_a_host_that_is_paused_answers_when_it_goes_on(data_dir, tmp_path):
    with training_host(data_dir, tmp_path) as host, client(host) as asking:
        host.pause()
        with pytest.raises(httpx.ReadTimeout):
            asking.get("/health", timeout=0.3)
        host.go_on()
        assert asking.get("/embedded").json() == {"pid": host.process.pid, "ending": False, "live": 0}
