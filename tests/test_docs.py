"""The README cannot lag: it has every command, option, setting, event type, status and exit code, and its code runs."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ktrdr_ops.core import errors
from ktrdr_ops.core.events import FACTS
from ktrdr_ops.core.state import STATUSES
from ktrdr_ops.hosts.sandbox import stop_hosts
from ktrdr_ops.interfaces.cli.main import build
from ktrdr_ops.settings import load_settings, names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_BY_SIGNALS = {129, 143}


def rows(first_heading: str) -> list[list[str]]:
    """The rows of the tables whose first column has this heading, cell by cell."""
    found: list[list[str]] = []
    inside = False
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first_heading:
            inside = True
        elif inside and not set(line) <= set("|- "):
            found.append(cells)
    return found


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command that can be typed and is shown, with its name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
        return
    for name, child in below.items():
        if not child.hidden:
            yield from commands(child, (*path, name))


def options(command: Any) -> set[str]:
    """The options that its help shows."""
    shown = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    return {max(param.opts, key=len) for param in shown} - {"--help"}


ALL = dict(commands(get_command(build())))
DOCUMENTED = {re.split(r" (?=[A-Z\[(])", codes(row[0])[0])[0]: row for row in rows("command")}
GLOBALS = {code for row in rows("everywhere") for code in codes(row[0]) for code in _OPTION.findall(code)}
STARTING = {code for row in rows("where something starts") for code in codes(row[0]) for code in _OPTION.findall(code)}


@pytest.mark.parametrize("name", ALL)
def test_each_command_is_in_the_readme_with_its_options(name):
    assert name in DOCUMENTED, f"the table of commands has no `{name}`"
    said = set(_OPTION.findall(" ".join(codes(" ".join(DOCUMENTED[name])))))
    has = {option for option in options(ALL[name]) if option.startswith("--")}
    if "--new" in has:
        assert has >= STARTING
        said |= STARTING
    assert said == has


def test_the_readme_has_no_command_that_there_is_not():
    assert set(DOCUMENTED) == set(ALL)


def test_each_global_option_is_in_the_readme():
    has = {option for param in get_command(build()).params for option in param.opts}
    assert {option for option in has if option.startswith("--")} - {"--help"} == {
        option for option in GLOBALS if option.startswith("--")
    }


def test_each_setting_is_in_the_readme_with_its_variable():
    documented = {codes(row[0])[0]: row[1] for row in rows("setting")}
    assert tuple(documented) == names()
    for name, variables in documented.items():
        assert codes(variables)[0] == f"KTRDR_OPS_{name.upper()}"


def test_the_users_own_variables_are_in_the_readme_and_work():
    documented = {codes(row[0])[0]: codes(row[1]) for row in rows("setting")}
    own = {variable: name for name, variables in documented.items() for variable in variables[1:]}
    assert own == {"IB_HOST_SERVICE_URL": "ib_host_url", "TRAINING_HOST_SERVICE_URL": "training_host_url"}
    for variable, name in own.items():
        settings = load_settings(
            environment={variable: "http://there:1"}, folder=ROOT / "none", user_file=ROOT / "none"
        )
        assert getattr(settings, name) == "http://there:1"


def test_each_event_type_is_in_the_readme_with_its_class():
    documented = {codes(row[0])[0]: row[1] for row in rows("event")}
    assert documented == {name: fact.event_class for name, fact in FACTS.items()}


def test_each_status_is_in_the_readme():
    assert tuple(codes(row[0])[0] for row in rows("status")) == STATUSES


def test_each_exit_code_is_in_the_readme():
    known = {error.exit_code for _, error in inspect.getmembers(errors, inspect.isclass) if hasattr(error, "exit_code")}
    documented = {int(row[0].strip("`")) for row in rows("exit code")}
    assert documented >= known | _BY_SIGNALS | {0}
    assert {code for code in documented if code < 100} == {code for code in known if code < 100} | {0}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def alike(text: str) -> list[str]:
    """The lines of an output without what differs from run to run: ends of ids, times, durations, ports, the head."""
    text = re.sub(r"(?<=[A-Za-z0-9]_)[2-9a-hjkmnp-tv-z]{4}\b", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00(?=  )", "STARTED", text)
    text = re.sub(r"\b[\d.]+ s\b", "N s", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"[0-9a-f]{16}…", "HASH", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


@pytest.fixture
def run(tmp_path):
    """Runs Python for a person who has nothing of ours yet; gives what it printed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KTRDR_OPS_")}
    own |= {name: str(tmp_path) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def run(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=tmp_path, env=own, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    yield run
    for state_file in tmp_path.rglob("data-host.json"):
        stop_hosts(state_file.parent)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_the_python_code_prints_what_the_readme_says(run):
    code, printed = blocks("python"), blocks("text")
    assert len(code) == len(printed) == 3
    for block, expected in zip(code, printed, strict=True):
        assert alike(run("-c", block)) == alike(expected)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_the_first_shell_commands_print_what_the_readme_says(run):
    expected = re.split(r"^\$ ", blocks("console")[0], flags=re.MULTILINE)[1:]
    assert len(expected) == 3
    for block in expected:
        line, _, output = block.partition("\n")
        program, *words = shlex.split(line)
        assert program == "ktrdr-ops"
        assert alike(run("-m", "ktrdr_ops", *words)) == alike(output)


def test_what_is_compared_is_more_than_nothing():
    assert alike("data_load_AAPL_1d_7f3k in 1.4 s") == alike("data_load_AAPL_1d_aaaa  in 20 s")
    assert alike("data_load_AAPL_1d_7f3k 3,270 rows") != alike("data_load_AAPL_1d_7f3k 3,271 rows")
