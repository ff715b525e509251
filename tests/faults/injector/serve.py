"""The fork server's own process: a line of JSON asks for a run, a line answers it."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import life_cycles

INJECTOR = ctypes.CDLL(None)
# Imported here, each would be imported again in every child.
LAZY = ("alembic.command", "sqlalchemy.dialects.sqlite", "logging.config", "mako.template", "psutil")


def main(root: Path) -> None:
    """Answer until there is no more to read."""
    for name in LAZY:
        importlib.import_module(name)
    life_cycles.hurry()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line), root)) + "\n")
        answers.flush()
    shutil.rmtree(root, ignore_errors=True)  # also when the test was killed


def answer(request: dict[str, Any], root: Path) -> dict[str, Any]:
    """Do what is asked in a child of its own, and say what became of it."""
    handles = {name: _scratch(root / name) for name in ("told", "fired", "errors")}
    child = os.fork()
    if child == 0:
        _child(request, handles)
    _, status = os.waitpid(child, 0)
    texts = {name: _read(handle) for name, handle in handles.items()}
    told = [json.loads(line) for line in texts["told"].splitlines()]
    calls = [line["calls"] for line in told if "calls" in line]
    return {
        "ended": _ended(status),
        "told": [line for line in told if "calls" not in line],
        "fired": texts["fired"].splitlines(),
        "calls": calls[0] if calls else 0,
        "errors": texts["errors"][-4000:],
    }


def _scratch(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)


def _read(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    parts = []
    while part := os.read(handle, 1 << 16):
        parts.append(part)
    os.close(handle)
    return b"".join(parts).decode(errors="replace")


def _ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "ok", 1: "raised"}.get(os.WEXITSTATUS(status), "crashed")


def _child(request: dict[str, Any], handles: dict[str, int]) -> None:
    code = 2
    try:
        os.dup2(handles["errors"], 2)
        signal.alarm(request["deadline"])  # its default action ends the process, whatever it waits for
        told = life_cycles.Told(handles["told"])
        code = _CHILDREN[request["do"]](request, told, handles["fired"])
    except BaseException:  # a forked child must not go on as a second server
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _prepare(request: dict[str, Any], told: life_cycles.Told, fired: int) -> int:
    asyncio.run(life_cycles.CYCLES[request["cycle"]].prepare(Path(request["folder"])))
    return 0


def _run(request: dict[str, Any], told: life_cycles.Told, fired: int) -> int:
    if request["mutant"]:
        life_cycles.MUTANTS[request["mutant"]]()
    fault = request["fault"]
    INJECTOR.inject_arm(
        request["folder"].encode(), fault["at"], fault["error"], fault["times"], fault["torn"], fault["reads"], fired
    )
    try:
        asyncio.run(life_cycles.CYCLES[request["cycle"]].run(Path(request["folder"]), told))
    except Exception as error:  # it was told so: whether rightly is the check's to say
        told.raised(error)
        traceback.print_exc()
        return 1
    finally:
        told.say(calls=INJECTOR.inject_count())
    return 0


def _check(request: dict[str, Any], told: life_cycles.Told, fired: int) -> int:
    for problem in asyncio.run(life_cycles.CYCLES[request["cycle"]].check(Path(request["folder"]), request["told"])):
        told.say(problem=problem)
    return 0


_CHILDREN: dict[str, Callable[[dict[str, Any], life_cycles.Told, int], int]] = {
    "prepare": _prepare,
    "run": _run,
    "check": _check,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
