"""list, show, watch, replay, note: what they print, and what ids mean."""

from __future__ import annotations

import signal
import time

import pytest

from ktrdr_ops.core.clock import iso


def test_without_a_journal_list_is_empty_with_a_hint(cli):
    ran = cli("list", "--json")
    assert (ran.code, ran.json) == (0, {"operations": [], "total": 0})
    assert "there is no journal" in ran.err
    assert not cli.journal.exists()


@pytest.mark.parametrize(
    "command", [("show", "x"), ("cancel", "x"), ("resume", "x"), ("replay", "x"), ("note", "x", "y")]
)
def test_without_a_journal_there_is_no_operation_and_none_is_made(cli, command):
    ran = cli(*command, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (3, "not_found")
    assert not cli.journal.exists()


@pytest.mark.slow
def test_list_filters_sorts_pages_and_counts(cli):
    cli("toy", "work", "one", "--pieces", "1")
    cli("toy", "work", "two", "--pieces", "2", "--fail", "2")
    cli("toy", "work", "three", "--pieces", "1")
    listed = cli("list", "--json", "--limit", "2").json
    assert [found["context"]["name"] for found in listed["operations"]] == ["three", "two"]
    assert listed["total"] == 3
    assert "2 of 3 are shown" in cli("list", "--limit", "2").err
    assert len(cli("list", "--json", "--limit", "1", "--all").json["operations"]) == 3
    assert [f["context"]["name"] for f in cli("list", "--json", "--status", "failed").json["operations"]] == ["two"]
    assert cli("list", "--json", "--key", "toy_work:t*", "--since", "1h", "--type", "toy_work").json["total"] == 2
    assert cli("list", "--json", "--grep", "broke").json["total"] == 1
    assert (
        cli("list", "--json", "--since", "2020-01-01", "--sort", "key").json["operations"][0]["key"] == "toy_work:two"
    )


@pytest.mark.slow
def test_list_shows_whole_ids_and_the_columns_that_were_asked_for(done):
    operation_id = done.rows("SELECT operation_id FROM operations")[0][0]
    ran = done("list", COLUMNS="40")
    assert operation_id in ran.out
    assert "✓ completed" in ran.out
    assert done("list", "--columns", "id").out.split() == ["ID", *sorted_ids(done)]
    ran = done("list", "--columns", "context.name,status,key")
    assert ran.out.splitlines()[2].split() == ["good", "✓", "completed", "toy_work:good"]
    assert done("list", "--columns", "odd").code == 2


def sorted_ids(cli):
    return [row[0] for row in cli.rows("SELECT operation_id FROM operations ORDER BY first_position DESC")]


def test_two_statuses_are_either(done):
    assert done("list", "--status", "failed", "--status", "completed", "--json").json["total"] == 2
    assert done("list", "--status", "failed", "--status", "odd").code == 2


@pytest.mark.slow
def test_how_long_it_took_is_for_how_long_its_attempts_worked(cli):
    running = cli.slow("--pause", 0.1)
    running.signal(signal.SIGKILL)
    running.ended()
    last = cli.rows("SELECT max(at) FROM events")[0][0]
    cli.until(lambda: time.time() > last / 1e6 + 1.2)
    assert 0 < took(cli) < 1, "a killed one worked until its last event"
    cli("note", "@last", "seen")
    killed = cli("show", "@last", "--json").json
    assert (killed["status"], killed["finished_at"]) == ("interrupted", iso(last)), "not when somebody looked"
    first = took(cli)
    cli.flag.touch()
    resumed = cli("resume", "@last")
    assert first < took(cli) < first + 1, "both attempts, and not the time between them"
    assert f"completed in {took(cli):.2f} s" in resumed.out
    assert f"took       {took(cli):.2f} s" in cli("show", "@last").out


def took(cli):
    return float(cli("list", "--columns", "took").out.split()[-2])


def test_a_local_time_is_said_in_utc(done):
    ran = done("list", "--since", "2026-01-15T09:30", TZ="America/New_York")
    assert "is 2026-01-15T14:30:00+00:00 (UTC)" in ran.err
    ran = done("list", "--since", "2026-11-01T01:30", "--json", TZ="America/New_York")
    assert ran.code == 2
    assert "-04:00" in ran.json["error"]["hint"]
    assert "-05:00" in ran.json["error"]["hint"]


def test_an_id_is_its_suffix_any_unique_beginning_or_a_name(done):
    operation_id = done.rows("SELECT operation_id FROM operations WHERE status = 'completed'")[0][0]
    for reference in (operation_id, operation_id[-4:], "toy_work_g"):
        assert done("show", reference, "--json").json["operation_id"] == operation_id
    assert done("show", "@last", "--json").json["context"]["name"] == "bad"
    assert done("show", "@failed", "--json").json["context"]["name"] == "bad"


def test_an_ambiguous_id_lists_the_candidates_and_an_unknown_one_is_3(done):
    ran = done("show", "toy_work", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (3, "ambiguous")
    for (operation_id,) in done.rows("SELECT operation_id FROM operations"):
        assert operation_id in ran.json["error"]["message"]
    for reference in ("nothing", "@running", "\u202e\x1b[2J", "x" * 10_000):
        ran = done("show", reference)
        assert ran.code == 3
        assert ran.err.replace("\n", "").isprintable()


def test_show_has_three_zooms(done):
    now = done("show", "toy_work_g", "--json").json
    timeline = done("show", "toy_work_g", "--timeline", "--json").json
    full = done("show", "toy_work_g", "--full", "--json").json
    assert timeline["operation"] == full["operation"] == now
    assert len(full["events"]) == now["events"]
    assert {"progressed"} == {e["type"] for e in full["events"]} - {e["type"] for e in timeline["events"]}
    text = done("show", "toy_work_g", "--full")
    assert "Piece 3" in text.out
    assert "toy_work:good" in text.out


def test_show_follows_one_event_a_line_until_the_end(cli):
    running = cli.slow()
    following = cli.start("show", "@running", "-f", "--json")
    assert '"type": "submitted"' in following.process.stdout.readline()
    cli.flag.touch()
    ran = following.ended()
    assert ran.code == 0
    assert ran.lines[-1]["type"] == "completed"
    positions = [event["position"] for event in ran.lines]
    assert positions == sorted(set(positions))
    running.ended()


def test_watch_of_what_is_over_ends_with_its_exit_code(done):
    assert done("watch", "@last").code == 1
    watched = done("watch", "@last", "--json")
    assert (watched.code, watched.json) == (1, done("show", "@last", "--json").json)


@pytest.mark.slow
def test_a_note_is_an_event(cli):
    cli("toy", "work", "good")
    written = cli("note", "@last", "looks right\x1b", "--json").json
    last = cli("show", "@last", "--full", "--json").json["events"][-1]
    assert (last["type"], last["position"]) == ("noted", written["position"])
    assert cli("note", "@last", " ", "--json").code == 2


# Replay


def test_replay_shows_what_was_shown_then(done):
    shown = done("replay", "toy_work_g", "--json").json["shown"]
    assert [one["message"] for one in shown][:3] == [
        "Starting toy work (good)",
        "Piece 1 (good) [1/5] (1/5 items)",
        "Piece 2 (good) [2/5] (2/5 items)",
    ]
    assert shown[-1]["percentage"] == 100.0
    assert shown[-1]["message"].startswith("Operation completed")


@pytest.mark.slow
def test_replay_at_a_position_a_time_and_a_percentage(done):
    shown = done("replay", "toy_work_g", "--json").json["shown"]
    third = shown[3]
    at_position = done("replay", "toy_work_g", "--at", third["position"], "--json").json
    at_time = done("replay", "toy_work_g", "--at", third["at"], "--json").json
    at_percentage = done("replay", "toy_work_g", "--at", "60%", "--json").json
    assert at_position["message"] == "Piece 3"
    assert at_position["status"] == "running"
    assert at_percentage == at_position
    assert at_time["percentage"] == 60.0
    assert done("replay", "toy_work_g", "--at", "0").code == 2
    assert done("replay", "toy_work_g", "--at", "101%").code == 2
    assert "Piece 3 (good) [3/5]" in done("replay", "toy_work_g", "--at", "60%").out


def test_playing_back_gives_one_state_a_line(done):
    played = done("replay", "toy_work_g", "--play", "--speed", "100000x", "--json")
    assert played.lines == done("replay", "toy_work_g", "--json").json["shown"]


# Resume


@pytest.mark.slow
def test_resume_says_what_it_would_do_and_does_it(cli):
    failed = cli("toy", "work", "bad", "--fail", "3", "--json").json
    would = cli("resume", "@last", "--dry-run", "--json")
    assert (would.code, would.json["operations"][0]["steps_kept"]) == (0, 2)
    ran = cli("resume", "@last", "--json")
    assert (ran.code, ran.json["operation_id"], ran.json["attempt"]) == (0, failed["operation_id"], 2)
    again = cli("resume", "@last", "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "finished")


def test_restart_begins_afresh_with_the_same_parameters(cli):
    failed = cli("toy", "work", "bad", "--fail", "host2", "--json").json
    ran = cli("resume", "@last", "--restart", "--json")
    assert ran.json["operation_id"] != failed["operation_id"]
    assert (ran.code, ran.json["attempt"]) == (5, 1)


def test_resume_of_a_parents_children_runs_those_that_are_not_completed(cli):
    cli("toy", "work", "one", "two", "--fail", "2")
    ran = cli("resume", "--parent", "group", "--json")
    assert ran.code == 0
    assert [found["status"] for found in ran.json["operations"]] == ["completed", "completed"]
