"""What holds for every command: options on both sides, errors as documents, output that is safe."""

from __future__ import annotations

import io
import json
import stat
import subprocess

import pytest

from ktrdr_ops import __version__
from ktrdr_ops.interfaces.cli.screen import Screen, json_text, paint, safe


def test_global_options_go_before_and_after_the_command(done):
    before = done("--json", "list")
    after = done("list", "--json")
    assert before.json == after.json
    assert before.json["total"] == 2


def test_a_usage_error_is_a_sentence_and_exit_code_2(cli):
    ran = cli("lst")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("✗ No such command 'lst'. Did you mean 'list'?")
    assert "--help" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("lst",),
        ("list", "--limit", "many"),
        ("list", "--limit", "0"),
        ("list", "--since", "soon"),
        ("list", "--status", "odd"),
        ("list", "--sort", "odd"),
        ("toy", "work"),
        ("toy", "look", "ugly"),
        ("cancel",),
        ("cancel", "a", "--type", "b"),
        ("replay", "--speed", "fast"),
        ("run", "toy_work", "--param", "name"),
        ("run", "nothing_known"),
        ("toy", "work", "nobody"),
        ("toy", "work", "good", "--pieces", "x"),
        ("--color", "blue", "list"),
    ],
)
@pytest.mark.slow
def test_an_invalid_value_is_one_document_and_exit_code_2(done, arguments):
    ran = done("--json", *arguments)
    assert ran.code == 2
    assert set(ran.json) == {"error"}
    assert set(ran.json["error"]) == {"code", "message", "hint"}
    assert ran.json["error"]["hint"]


def test_the_version_is_told(cli):
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"ktrdr-ops {__version__}\n")
    assert not cli.journal.exists()


def test_help_lists_every_installed_domain_under_a_heading(cli):
    ran = cli("--help")
    assert ran.code == 0
    assert "Start:" in ran.out
    assert "toy " in ran.out


def test_a_group_without_a_command_prints_its_help_and_exits_2(cli):
    ran = cli("toy")
    assert ran.code == 2
    assert "Usage: ktrdr-ops toy" in ran.err
    assert cli("--json", "toy").json["error"]["code"] == "usage"


def test_a_setting_that_cannot_be_meant_is_an_error_with_its_origin(cli):
    ran = cli("list", "--json", KTRDR_OPS_PACING="perhaps")
    assert ran.code == 2
    assert "environment" in ran.json["error"]["message"]


def test_what_cannot_be_a_journal_is_refused_with_exit_code_7(cli, tmp_path):
    text = tmp_path / "text.db"
    text.write_text("no journal, but long enough to be looked at\n" * 100)
    for path in (tmp_path, text):
        ran = cli("toy", "work", "good", "--json", journal=path)
        assert (ran.code, set(ran.json)) == (7, {"error"})
        assert "you are" not in ran.json["error"]["hint"]
    assert text.read_text().startswith("no journal")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.db"]


def test_nobody_reading_is_no_traceback(done):
    process = subprocess.Popen(
        f"{' '.join(done.command('--journal', done.journal, 'show', '@last', '--full'))} | true",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        env=done.environment,
    )
    assert "Traceback" not in process.communicate(timeout=20)[1]


def test_a_log_file_gets_a_line_of_json_for_each_change_of_state_and_is_private(cli):
    log = cli.folder / "log"
    assert cli("--log-file", log, "toy", "work", "good").code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    states = [line["operation"]["status"] for line in lines if "operation" in line]
    assert states == ["running", "completed"]
    assert all({"at", "level", "logger", "message"} <= set(line) for line in lines)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_file_that_cannot_be_written_is_an_invalid_value(cli):
    ran = cli("--json", "--log-file", cli.folder / "no" / "log", "list")
    assert (ran.code, ran.json["error"]["code"]) == (2, "invalid_value")


def test_quiet_prints_the_result_and_nothing_else(cli):
    ran = cli("-q", "toy", "work", "good")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("✓ toy_work_good_")
    ran = cli("-q", "toy", "work", "bad", "--fail", "3")
    assert ran.err.startswith("✗ toy_work_bad_")
    assert ran.err.count("\n") == 1
    assert cli("-q", "show", "nothing").err.count("\n") == 1


def test_a_journal_is_named_by_a_url_too_and_what_is_no_file_is_refused(done, cli):
    assert done("list", "--json", journal=f"sqlite:///{done.journal}").json["total"] == 2
    ran = cli("toy", "work", "good", "--json", journal="postgresql://here/it")
    assert (ran.code, ran.json["error"]["code"]) == (2, "invalid_value")
    assert list(cli.folder.iterdir()) == []


def test_a_terminal_without_utf_8_gets_ascii(cli):
    ran = cli("toy", "work", "good", PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert ran.out.isascii()
    assert ran.err.isascii()
    assert ran.out.startswith("ok toy_work_good_")


# What is printed is safe


class Fake(io.TextIOWrapper):
    """A stream that keeps what was written."""

    def __init__(self, *, encoding: str = "utf-8", terminal: bool = False) -> None:
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding=encoding)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        self.flush()
        return self.kept.getvalue().decode(self.encoding)


HOSTILE = "a\x1b[2Jb\rc\nd\x07\x9b31m\u202egpj.exe\u2066\x00\ud800\u200b"


def test_a_foreign_text_cannot_move_the_cursor_or_reorder_the_line():
    text = safe(HOSTILE)
    assert text.isprintable()
    assert text.startswith("a\\x1b[2Jb\\rc\\nd\\x07")
    assert "\\u202e" in text


def test_a_screen_escapes_what_a_caller_forgot_but_not_line_breaks():
    stream = Fake()
    Screen(stream).write("one\x1b[5mtwo\nthree\u202e")
    assert stream.text == "one\\x1b[5mtwo\nthree\\u202e\n"


def test_colours_are_shown_only_where_they_are_wanted(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    painted = paint("word", "good")
    assert Screen(Fake(terminal=True)).fit(painted) == "\x1b[32mword\x1b[0m"
    assert Screen(Fake(), "always").fit(painted) == "\x1b[32mword\x1b[0m"
    assert Screen(Fake()).fit(painted) == "word"
    assert Screen(Fake(terminal=True), "never").fit(painted) == "word"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(Fake(terminal=True)).fit(painted) == "word"


def test_a_narrow_encoding_gets_signs_in_ascii_and_the_rest_escaped():
    assert Screen(Fake(encoding="ascii")).fit("✓ a → b … é") == "ok a -> b ... \\xe9"
    assert Screen(Fake(encoding="latin-1")).fit("✗ é") == "x é"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_the_same_document_in_any_encoding_and_disturbs_no_terminal(encoding):
    stream = Fake(encoding=encoding)
    Screen(stream).write_json({"text": "é😀\x1b\x9b\u202e"})
    assert json.loads(stream.text) == {"text": "é😀\x1b\x9b\u202e"}
    assert stream.text.replace("\n", "").isprintable()
    assert stream.text.isascii() or encoding == "utf-8"


def test_a_lone_surrogate_in_a_document_is_still_json():
    assert json.loads(json_text({"text": "\ud800"})) == {"text": "\ud800"}
