"""How operations are shown while they go: at a terminal, and as lines where there is none."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

from ktrdr_ops.core.progress import GenericProgressState
from ktrdr_ops.core.state import OperationState, document
from ktrdr_ops.interfaces.cli.words import number, outcome, progress_words

# A session of its own has no terminal until it takes one; then Ctrl+C typed there reaches it.
_TAKE_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def at_a_terminal(cli, *arguments, presses=None, width=120, **environment):
    """Run it at a pseudo-terminal of this width; gives the exit code and all that was shown."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_THE_TERMINAL, *cli.command("--journal", cli.journal, *arguments)],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=cli.folder,
        env=cli.environment | {"COLUMNS": str(width)} | environment,
        start_new_session=True,
    )
    os.close(inner)
    if presses is not None:
        threading.Thread(target=presses, args=(terminal,), daemon=True).start()
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:
        pass
    finally:
        os.close(terminal)
    return process.wait(), shown.decode("utf-8", "replace")


def test_at_a_terminal_a_bar_is_drawn_and_the_result_printed(cli):
    code, shown = at_a_terminal(cli, "toy", "work", "good", "--pause", "0.1")
    assert code == 0
    assert "━" in shown
    assert "60%" in shown
    assert "Piece 3 (good) [3/5]" in shown
    assert "\x1b[32m✓" in shown
    assert shown.rstrip().endswith("done now 5")


def test_at_a_terminal_without_utf_8_the_bar_is_ascii(cli):
    code, shown = at_a_terminal(cli, "toy", "work", "good", "--pause", "0.1", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert code == 0
    assert "====" in shown
    assert shown.isascii()
    assert "\x1b[32m" not in shown


def test_ctrl_c_at_a_terminal_leaves_it_as_it_was(cli):
    def press(terminal):
        cli.until(lambda: cli.count("progressed", "Piece 3"))
        os.write(terminal, b"\x03")

    code, shown = at_a_terminal(cli, "toy", "work", "slow", "--until", cli.flag, presses=press)
    assert code == 130
    assert "Operation cancelled successfully" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_what_was_lost_above_a_terminal_is_json_safe(cli):
    code, shown = at_a_terminal(cli, "toy", "work", "good", "--json")
    assert code == 0
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["status"] == "completed"


def shown_lines(text):
    """What stood on the terminal's lines at any time, without its control sequences."""
    return {re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", text)}


def goes_on_once_shown(cli, *, said):
    """Lets the work go on as soon as the journal has an event of that type."""

    def look(terminal):
        cli.until(lambda: cli.count(said))
        threading.Event().wait(0.3)  # the region is drawn ten times a second
        cli.flag.touch()

    return look


@pytest.mark.parametrize(
    ("stuck", "event", "words"),
    [
        ("retry", "request_retried", "retry 2: the toy host hung up, next in 15 s"),
        ("wait", "wait_started", "waiting: the toy host sleeps"),
    ],
)
@pytest.mark.slow
def test_at_a_terminal_the_line_says_for_what_it_waits(cli, stuck, event, words):
    code, shown = at_a_terminal(
        cli, "toy", "work", "slow", "--until", cli.flag, "--stuck", stuck, presses=goes_on_once_shown(cli, said=event)
    )
    assert code == 0
    assert any(words in line for line in shown_lines(shown))


@pytest.mark.slow
def test_a_curve_of_the_context_is_drawn_beneath_the_bar(cli):
    code, shown = at_a_terminal(cli, "toy", "work", "good", "--rate", "0.5", "--pause", "0.1")
    assert code == 0
    assert "    lefts █▄▂▁▁ 0.03125" in shown_lines(shown)
    assert any("Piece 3 (good) [3/5] (3/5 items) │ 12% left" in line for line in shown_lines(shown))
    assert re.search(r"curves +lefts █▄▂▁▁ 0\.03125", cli("show", "@last").out)
    assert re.search(r"curves +lefts #", cli("show", "@last", PYTHONIOENCODING="ascii").out)


def test_no_line_is_longer_than_the_terminal(cli):
    options = ("--rate", "0.5", "--pause", "0.05", "--pieces", "4")
    code, shown = at_a_terminal(cli, "toy", "work", "good", *options, width=44)
    assert code == 0
    drawn = [line for line in shown_lines(shown) if "━" in line or "─" in line]
    assert drawn
    assert max(map(len, drawn)) <= 44
    assert not any("(good)" in line for line in drawn)


@pytest.mark.parametrize(
    ("stuck", "words"),
    [("retry", "retry 2: the toy host hung up, next in 15 s"), ("wait", "waiting: the toy host sleeps")],
)
def test_without_a_terminal_a_retry_and_a_wait_are_a_line_each(cli, stuck, words):
    running = cli.slow("--stuck", stuck)
    line = next(line for line in running.process.stderr if "the toy host" in line)
    assert line.startswith("toy_work_slow_")
    assert words in line
    cli.flag.touch()
    assert running.ended().code == 0


def test_the_retries_of_an_earlier_attempt_are_not_said_again(cli):
    running = cli.slow("--stuck", "retry")
    cli.until(lambda: cli.count("request_retried"))
    running.signal(signal.SIGKILL)
    running.ended()
    resumed = cli.start("resume", "@last")
    cli.until(lambda: cli.count("attempt_started") == 2)
    said = [resumed.process.stderr.readline() for _ in range(3)]
    cli.flag.touch()
    assert "hung up" not in "".join(said) + resumed.ended().err


@pytest.mark.slow
def test_details_are_shown_wherever_progress_is_and_say_nothing_twice(cli):
    running = cli.slow("--rate", "0.5")
    told = "Piece 3 (slow) [3/5] (3/5 items) │ 12% left"
    assert f"shown      {told}" in cli("show", "@running").out
    assert any(line.endswith(told) for line in cli("replay", "@running").out.splitlines())
    cli.flag.touch()
    running.ended()


def test_how_many_items_are_done_is_said_once():
    def told(message):
        state = GenericProgressState("id", 3, 4, 93.0, message, datetime.now(UTC), items_processed=29, total_items=30)
        return progress_words(state, message, "Epoch 29/30 · Batch 5/9")

    assert told("Epoch 29/30 of it") == "Epoch 29/30 of it [3/4] │ Batch 5/9"
    assert told("It goes on") == "It goes on [3/4] │ 29/30 items │ Epoch 29/30 · Batch 5/9"


def test_values_within_a_value_stand_behind_their_names():
    assert number({"parameters": 897, "seed_of_it": 42}) == "parameters 897, seed of it 42"


@pytest.mark.parametrize(
    ("outlives", "final", "said"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_an_interrupted_one_whose_host_goes_on_says_so(outlives, final, said):
    state = OperationState(operation_id="train_1", status="interrupted", outlives=outlives, error={"final": final})
    told = outcome(document(state, "interrupted"), "ktrdr-ops resume 1", goes_on_elsewhere=state.outlives)
    assert ("goes on there" in told) == said
