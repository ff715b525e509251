"""Signals, kills, and cancels from elsewhere."""

from __future__ import annotations

import os
import signal

import pytest


def test_ctrl_c_cancels_keeps_the_steps_and_tells_the_command_that_goes_on(cli):
    running = cli.slow()
    running.signal(signal.SIGINT)
    ran = running.ended()
    assert ran.code == 130
    assert "✗ Operation cancelled successfully in 0." in ran.err
    assert "2 steps kept · nothing half-written" in ran.err
    suffix = cli.rows("SELECT suffix FROM operations")[0][0]
    assert f"resume {suffix}" in ran.err
    found = cli("show", "@last", "--json").json
    assert found["status"] == "cancelled"
    assert found["cancellation"]["requested_by"] == "user"
    assert found["cancellation"]["reason"] == "Ctrl+C"
    assert found["cancellation"]["latency_ms"] < 1000
    cli.flag.touch()
    assert cli("resume", suffix, "--json").json["result"]["done_now"] == 3


def test_ctrl_c_with_json_prints_the_document_with_the_error(cli):
    running = cli.slow("--json")
    running.signal(signal.SIGINT)
    ran = running.ended()
    assert (ran.code, ran.json["status"], ran.json["error"]["code"]) == (130, "cancelled", "cancelled")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_being_told_to_go_interrupts_and_the_same_command_goes_on(cli, number, code):
    running = cli.slow("--json")
    running.signal(number)
    ran = running.ended()
    assert (ran.code, ran.json["status"]) == (code, "interrupted")
    assert ran.json["error"]["message"] == f"signal {number.name}" or number.name in ran.json["error"]["message"]
    cli.flag.touch()
    again = cli("toy", "work", "slow", "--until", cli.flag, "--json")
    assert (again.code, again.json["attempt"], again.json["result"]["done_now"]) == (0, 2, 3)


def test_ctrl_c_of_a_group_cancels_its_children(cli):
    running = cli.start("toy", "work", "one", "two", "--until", cli.flag, "--json")
    cli.until(lambda: cli.count("progressed", "Piece 3") == 2)
    running.signal(signal.SIGINT)
    ran = running.ended()
    assert (ran.code, ran.json["status"]) == (130, "cancelled")
    assert [child["status"] for child in ran.json["children"]] == ["cancelled", "cancelled"]


def test_a_second_ctrl_c_stops_waiting_and_the_journal_says_that_nobody_confirmed(cli):
    running = cli.start("toy", "work", "slow", "--stuck", "deaf", "--json")
    cli.until(lambda: cli.count("progressed", "Piece 3"))
    running.signal(signal.SIGINT)
    cli.until(lambda: cli.count("cancel_requested"))
    running.signal(signal.SIGINT)
    ran = running.ended()
    assert (ran.code, ran.json["status"]) == (130, "cancelled")
    assert ran.json["cancellation"]["confirmed"] is False


@pytest.mark.slow
def test_a_thread_that_does_not_stop_does_not_keep_the_process(cli):
    running = cli.start("toy", "work", "slow", "--stuck", "thread", "--json")
    cli.until(lambda: cli.count("progressed", "Piece 3"))
    running.signal(signal.SIGINT)
    assert running.ended().code == 130


def test_after_a_kill_everybody_sees_interrupted_and_the_same_command_goes_on(cli):
    running = cli.slow()
    running.signal(signal.SIGKILL)
    running.ended()
    listed = cli("list", "--json", "--status", "interrupted").json
    assert [found["status"] for found in listed["operations"]] == ["interrupted"]
    assert cli.count("interrupted") == 0
    cli.flag.touch()
    again = cli("toy", "work", "slow", "--until", cli.flag, "--json")
    assert (again.code, again.json["attempt"], again.json["result"]["done_now"]) == (0, 2, 3)


@pytest.mark.slow
def test_recover_resumes_what_was_killed(cli):
    assert cli("recover", "--json").json == {"resumed": [], "left": []}
    running = cli.slow()
    running.signal(signal.SIGKILL)
    running.ended()
    cli.flag.touch()
    would = cli("recover", "--dry-run", "--json")
    assert (would.code, len(would.json["resumed"]), would.json["left"]) == (0, 1, [])
    ran = cli("recover", "--json")
    assert ran.code == 0
    assert [one["status"] for one in ran.json["resumed"]] == ["completed"]


def test_recover_gives_a_command_only_where_there_is_one(cli):
    running = cli.slow()
    running.signal(signal.SIGKILL)
    running.ended()
    ours = cli.environment["PYTHONPATH"].partition(os.pathsep)[0]
    left = cli("recover", "--json", PYTHONPATH=ours).json["left"][0]
    assert left["command"] is None
    assert left["hint"].startswith("Known: ")
    told = cli("recover", PYTHONPATH=ours).out
    assert "\n  Known: " in told
    assert "run: " not in told


def test_of_two_resumes_at_once_one_wins(cli):
    running = cli.slow()
    running.signal(signal.SIGKILL)
    running.ended()
    both = [cli.start("resume", "@last", "--json") for _ in range(2)]
    cli.until(lambda: any(one.process.poll() is not None for one in both))
    cli.flag.touch()
    codes = sorted(one.ended().code for one in both)
    assert codes[0] == 0
    assert codes[1] in (6, 8)
    assert cli.count("completed") == 1


def test_a_cancel_from_another_process_ends_it_with_130_there(cli):
    running = cli.slow("--json")
    ran = cli("cancel", "@running", "--reason", "not now", "--json")
    assert (ran.code, ran.json["status"]) == (0, "cancelled")
    assert ran.json["cancellation"]["reason"] == "not now"
    assert ran.json["cancellation"]["latency_ms"] < 1000
    there = running.ended()
    assert (there.code, there.json["status"]) == (130, "cancelled")


@pytest.mark.slow
def test_cancel_of_a_type_and_of_a_parents_children(cli):
    one, two = cli.slow(name="one"), cli.slow(name="two")
    ran = cli("cancel", "--type", "toy_work", "--json")
    assert (ran.code, ran.json["total"]) == (0, 2)
    assert [one.ended().code, two.ended().code] == [130, 130]
    group = cli.start("toy", "work", "good", "bad", "--until", cli.flag, "--json")
    cli.until(lambda: cli.count("progressed", "Piece 3") == 4)
    parent = cli.rows("SELECT operation_id FROM operations WHERE operation_type = 'group'")[0][0]
    ran = cli("cancel", "--parent", parent, "--json")
    assert {found["status"] for found in ran.json["operations"]} == {"cancelled"}
    assert group.ended().code == 130


def test_cancel_of_what_is_over_is_an_error(cli):
    cli("toy", "work", "good")
    ran = cli("cancel", "@last", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (1, "finished")


def test_ctrl_c_in_watch_only_detaches(cli):
    running = cli.slow()
    watching = cli.start("watch", "@running", "--no-progress")
    line = watching.process.stderr.readline()
    assert "running" in line
    watching.signal(signal.SIGINT)
    assert watching.ended().code == 0
    cli.flag.touch()
    assert running.ended().code == 0


def test_watch_settles_an_owner_that_dies(cli):
    running = cli.slow()
    watching = cli.start("watch", "@running", "--json")
    while not watching.has_said():
        assert cli("note", "@running", "look here", "--json").code == 0
    running.signal(signal.SIGKILL)
    ran = watching.ended()
    assert ran.code == 9
    assert ran.lines[-1]["type"] == "interrupted"
    assert cli.count("interrupted") == 1


# Ends that are not plain


def test_a_cancel_that_nobody_confirmed_is_said_everywhere(cli):
    running = cli.start("toy", "work", "slow", "--stuck", "liar")
    cli.until(lambda: cli.count("progressed", "Piece 3"))
    said = "the host did not confirm that it stopped"
    ran = cli("cancel", "@running")
    assert ran.code == 0
    assert ran.out.startswith("! cancelled, not confirmed  toy_work_slow_")
    assert said in ran.out
    there = running.ended()
    assert (there.code, said in there.err, "successfully" in there.err) == (130, True, False)
    assert "nothing half-written" not in there.err
    for told in (cli("list").out, cli("show", "@last").out):
        assert "! cancelled, not confirmed" in told
        assert said in told
    assert cli("list", "--json").json["operations"][0]["cancellation"]["confirmed"] is False


def test_a_cancel_that_was_confirmed_has_succeeded(cli):
    running = cli.slow()
    ran = cli("cancel", "@running")
    assert (ran.code, ran.out.startswith("✓ cancelled  toy_work_slow_")) == (0, True)
    assert "Operation cancelled successfully" in running.ended().err


def test_an_outcome_that_nobody_knows_is_done_again_only_by_a_restart(cli):
    ran = cli("toy", "work", "slow", "--fail", "lost3")
    suffix = cli.rows("SELECT suffix FROM operations")[0][0]
    assert ran.code == 9
    assert "was interrupted: outcome unknown, last seen piece 2 of 5" in ran.err
    assert f"resume {suffix} --restart" in ran.err
    again = cli("resume", suffix)
    assert again.code == 9
    assert "--restart" in again.err
    assert cli("resume", suffix, "--dry-run", "--json").json["operations"][0]["plan"].endswith("only --restart")
    assert cli("show", suffix, "--json").json["error"]["final"] is True


@pytest.mark.slow
def test_after_a_final_error_no_resume_is_offered(cli):
    ran = cli("toy", "work", "slow", "--fail", "final3")
    assert (ran.code, "Buy one." in ran.err, "resume" in ran.err) == (1, True, False)
    watched = cli("watch", "@last")
    assert (watched.code, "resume" in watched.err) == (1, False)
    assert "resume" in cli("toy", "work", "good", "--fail", "3").err


def test_watching_nothing_says_so_and_goes_on(cli):
    assert cli("toy", "work", "one").code == 0
    for more in ((), ("--json",)):
        watching = cli.start("watch", *more)
        assert watching.process.stderr.readline().startswith("nothing runs; what starts is shown")
        watching.signal(signal.SIGINT)
        assert watching.ended().code == 0
