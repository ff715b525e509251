"""Starting operations: the document, the same command again, groups, --detach, what is running already."""

from __future__ import annotations

import json

import pytest

FIELDS = (
    "operation_id operation_type key parent_id status stalled attempt percentage current_step total_steps message"
    " items_processed total_items context waiting created_at started_at finished_at events last_position owner"
    " checkpoint result error cancellation"
)


def test_a_completed_operation_is_one_document_and_exit_code_0(cli):
    ran = cli("toy", "work", "good", "--json", "--pieces", "2")
    assert ran.code == 0
    assert list(ran.json) == FIELDS.split()
    assert ran.json["status"] == "completed"
    assert ran.json["result"] == {"name": "good", "pieces": 2, "done_now": 2}
    assert ran.json["created_at"].endswith("+00:00")


def test_without_json_the_result_is_on_stdout_and_progress_on_stderr(cli):
    ran = cli("toy", "work", "good")
    assert ran.out.startswith("✓ toy_work_good_")
    assert ran.out.count("\n") == 1
    assert ran.err.splitlines()[0].startswith("toy_work_good_")


def test_a_failed_operation_is_its_document_with_the_error_and_exit_code_1(cli):
    ran = cli("toy", "work", "bad", "--fail", "3", "--json")
    assert ran.code == 1
    assert ran.json["status"] == "failed"
    assert ran.json["error"] == {"code": "failed", "message": "piece 3 broke", "hint": "Mend it."}


def test_a_failure_says_what_is_kept_and_how_to_go_on(cli):
    ran = cli("toy", "work", "bad", "--fail", "3")
    assert ran.out == ""
    assert "failed: piece 3 broke" in ran.err
    assert "has 2 of its steps" in ran.err
    suffix = cli.rows("SELECT suffix FROM operations")[0][0]
    assert f"resume {suffix}" in ran.err


def test_an_absent_host_is_exit_code_5(cli):
    assert cli("toy", "work", "bad", "--fail", "host2").code == 5


def test_a_defect_of_a_domain_is_told_in_a_sentence_that_cannot_disturb_the_terminal(cli):
    ran = cli("toy", "work", "bad", "--fail", "bug1")
    assert ran.code == 1
    assert "ZeroDivisionError: a defect\\x1b[2J" in ran.err
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.err


def test_the_same_command_again_goes_on_and_says_so(cli):
    first = cli("toy", "work", "bad", "--fail", "3", "--json").json
    ran = cli("toy", "work", "bad", "--fail", "3", "--json")
    assert ran.code == 0
    assert (ran.json["operation_id"], ran.json["attempt"]) == (first["operation_id"], 2)
    assert ran.json["result"]["done_now"] == 3
    assert f"going on with {first['operation_id']}: attempt 2, 2 steps kept" in ran.err


def test_new_starts_afresh(cli):
    first = cli("toy", "work", "bad", "--fail", "3", "--json").json
    again = cli("toy", "work", "bad", "--fail", "3", "--json", "--new").json
    assert again["operation_id"] != first["operation_id"]
    assert again["attempt"] == 1


def test_run_takes_values_as_json_where_they_are_json(cli):
    ran = cli("run", "toy_work", "--param", "name=one", "--param", "pieces=2", "--json")
    assert ran.code == 0
    assert ran.json["total_steps"] == 2


def test_parameters_that_cannot_be_stored_are_refused_and_nothing_is_written(cli):
    deep = "[" * 100 + "]" * 100
    ran = cli("run", "toy_work", "--param", "name=one", "--param", f"until={deep}", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "invalid_value")
    ran = cli("run", "toy_work", "--param", "name=one", "--param", f"until={'[' * 60_000}", "--json")
    assert ran.code == 2
    assert cli.count("submitted") == 0


def test_several_values_are_one_group_whose_document_has_children(cli):
    ran = cli("toy", "work", "one", "two", "three", "two", "--json")
    assert ran.code == 0
    assert ran.json["operation_type"] == "group"
    assert sorted(child["context"]["name"] for child in ran.json["children"]) == ["one", "three", "two"]
    assert {child["parent_id"] for child in ran.json["children"]} == {ran.json["operation_id"]}
    assert list(ran.json["children"][0]) == FIELDS.split()


def test_a_group_of_which_one_fails_is_failed_and_resumed_by_the_same_command(cli):
    ran = cli("toy", "work", "one", "two", "--fail", "2", "--json")
    assert (ran.code, ran.json["status"]) == (1, "failed")
    ran = cli("toy", "work", "one", "two", "--fail", "2", "--json")
    assert (ran.code, ran.json["attempt"]) == (0, 2)
    assert [child["attempt"] for child in ran.json["children"]] == [2, 2]


def test_a_key_that_is_live_is_exit_code_8_or_what_was_chosen(cli):
    slow = cli.slow("--json")
    live = cli("toy", "work", "slow", "--json")
    assert (live.code, live.json["error"]["code"]) == (8, "already_running")
    skipped = cli("toy", "work", "slow", "--if-running", "skip", "--json")
    assert (skipped.code, skipped.json["status"]) == (0, "running")
    attached = cli.start("toy", "work", "slow", "--if-running", "attach", "--json")
    waiting = cli.start("toy", "work", "slow", "--if-running", "wait", "--json")
    assert "already running" in attached.process.stderr.readline() + waiting.process.stderr.readline()
    assert attached.process.poll() is waiting.process.poll() is None
    cli.flag.touch()
    first = json.loads(slow.ended().out)
    joined, after = attached.ended(), waiting.ended()
    assert (joined.code, joined.json["operation_id"]) == (0, first["operation_id"])
    assert after.code == 0
    assert after.json["operation_id"] != first["operation_id"]


@pytest.mark.slow
def test_detach_prints_the_id_of_what_goes_on_without_the_terminal(cli):
    ran = cli("toy", "work", "slow", "--until", cli.flag, "--detach")
    operation_id = ran.out.strip()
    assert ran.code == 0
    assert cli("show", operation_id, "--json").json["status"] == "running"
    cli.flag.touch()
    assert cli("watch", operation_id).code == 0
    assert cli("show", operation_id, "--json").json["status"] == "completed"


def test_detach_of_what_is_refused_tells_the_refusal(cli):
    ran = cli("toy", "work", "nobody", "--detach", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "invalid_value")


def test_a_domains_command_that_starts_nothing_says_its_document_and_exit_code(cli):
    cli("toy", "work", "bad", "--pieces", "1")
    ran = cli("toy", "look", "bad", "--json")
    assert (ran.code, ran.json) == (4, {"name": "bad", "operations": 1})
    assert cli("toy", "look", "good").out == "good: 0\n"


@pytest.mark.slow
def test_a_start_says_how_long_it_waits_for_a_host(cli):
    one = ("toy", "work", "one", "--fail", "patience")
    assert "waits 600 s" in cli(*one).err
    assert "waits 90 s" in cli(*one, "--wait", "1m30s").err
    assert "waits 5 s" in cli("resume", "@last", "--wait", "5s").err
    assert "waits 43200 s" in cli("toy", "work", "two", "three", "--fail", "patience").err
    assert cli(*one, "--wait", "soon", "--json").code == 2
    assert cli("toy", "work", "good", "--fail", "patience", "--detach").code in (0, 1)
    cli.until(lambda: cli.rows("SELECT 1 FROM operations WHERE key = 'toy_work:good' AND status = 'failed'"))
    assert cli.count("failed", "waits 43200 s") == 4


@pytest.mark.slow
def test_a_group_whose_children_all_failed_for_one_reason_has_its_exit_code_and_hint(cli):
    ran = cli("toy", "work", "one", "two", "--fail", "host2", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (5, "host_unavailable")
    assert "Is it running?" in ran.json["error"]["hint"]
    assert cli("watch", "group").code == 5
    cli.slow(name="slow")
    ran = cli("run", "group", "--param", 'children=[{"type": "toy_work", "parameters": {"name": "slow"}}]', "--json")
    assert (ran.code, ran.json["error"]["code"]) == (8, "already_running")
    assert "ktrdr-ops" in ran.json["error"]["hint"]


def test_hints_in_json_name_the_journal_that_was_used(cli):
    hint = cli("toy", "work", "bad", "--fail", "host2", "--json").json["error"]["hint"]
    assert hint == f"Is it running?  ktrdr-ops --journal {cli.journal} doctor"
    assert f"--journal {cli.journal}" in cli("show", "nothing", "--json").json["error"]["hint"]
    listed = cli("list", "--json").json["operations"][0]
    assert listed["error"]["hint"] == hint


def test_an_argument_that_a_list_swallowed_is_the_one_that_is_missing(cli):
    assert "Missing argument 'TIMEFRAME'" in cli("data", "load", "AAPL").err
    assert "Missing argument 'SYMBOL'" in cli("data", "load").err


@pytest.mark.slow
def test_a_time_without_a_zone_is_said_in_utc_and_an_ambiguous_one_refused(cli):
    def load(*options):
        return cli("data", "load", "NOPE", "1d", "--mode", "local", *options, TZ="America/New_York")

    ran = load("--start", "2024-01-15T09:30", "--end", "2024-01-16")
    assert ran.err.splitlines()[0] == "start 2024-01-15T09:30 is 2024-01-15T14:30:00+00:00 (UTC)"
    assert "end " not in ran.err.splitlines()[1]
    ran = load("--start", "2024-11-03T01:30")
    assert ran.code == 2
    assert "-04:00" in ran.err
    assert "-05:00" in ran.err


def test_a_start_that_is_still_to_come_is_refused_before_anything_is_written(cli):
    ran = cli("data", "load", "AAPL", "1d", "--start", "2190-01-01", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "invalid_value")
    assert cli.count("submitted") == 0


def test_a_series_that_nobody_published_cannot_be_verified(cli):
    ran = cli("data", "verify", "NOPE", "1d", "--json")
    assert ran.code == 3
    assert "data load NOPE 1d" in ran.json["error"]["hint"]
