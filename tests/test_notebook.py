"""A notebook: cells in a real kernel, whose event loop runs while they do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

DEADLINE = 30.0

OPENING = """
import asyncio, time
import ktrdr_ops as ko

assert asyncio.get_running_loop().is_running()
app = ko.open_app()
months = [f"2026-{month:02}" for month in range(1, 13)]
"""

BUILDING = """
@app.operation("feature_build", key="{symbol}")
def build(op, symbol):
    for month in op.track(months):
        with open("made.txt", "a") as file:
            file.write(month + "\\n")
        time.sleep(0.15)
    return len(months)

print(app.run("feature_build", symbol="AAPL"))
"""

TELLING = """
for event in app.journal.tail("@last"):
    print(event.type)
"""

AWAITING = """
async with ko.open_app_async() as other:

    @other.operation("awaited")
    async def awaited(op):
        return [month async for month in op.track(months[:2])]

    print(await other.run("awaited"))

with ko.open_app() as another:
    print(another.show("@last")["operation_type"])
"""


class Notebook:
    """A kernel and what is typed into it."""

    def __init__(self, folder: Path) -> None:
        self._manager = KernelManager(kernel_name="python3")
        own = {name: value for name, value in os.environ.items() if not name.startswith("KTRDR_OPS_")}
        own |= {"KTRDR_OPS_JOURNAL": str(folder / "journal.db"), "PYTHONPATH": str(Path(__file__).parents[1])}
        own |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "IPYTHONDIR": str(folder)}
        self._manager.start_kernel(cwd=str(folder), env=own)
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=DEADLINE)
        self.pid = self._manager.provisioner.pid

    def begin(self, cell: str) -> None:
        """Run a cell and do not wait for it."""
        self._begun = self._client.execute(cell, stop_on_error=False)

    def ended(self) -> str:
        """The name of the exception that ended what was begun."""
        while (reply := self._client.get_shell_msg(timeout=DEADLINE))["parent_header"].get("msg_id") != self._begun:
            pass
        return str(reply["content"].get("ename", ""))

    def run(self, cell: str) -> str:
        """What the cell printed; the name of the exception that it raised."""
        said: list[str] = []

        def hear(message):
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        reply = self._client.execute_interactive(cell, output_hook=hear, timeout=DEADLINE)
        assert reply["content"]["status"] != "aborted"
        return "".join(said) + str(reply["content"].get("ename", ""))

    def interrupt(self) -> None:
        """As the stop button does."""
        self._manager.interrupt_kernel()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End it, whatever it does."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


@pytest.fixture
def open_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    opened: list[Notebook] = []

    def open_notebook() -> Notebook:
        opened.append(Notebook(tmp_path))
        return opened[-1]

    yield open_notebook
    for notebook in opened:
        notebook.close()


@pytest.mark.slow
def test_a_notebook_goes_on_where_its_killed_kernel_was(tmp_path, open_notebook):
    made = tmp_path / "made.txt"

    def lines() -> list[str]:
        return made.read_text().split() if made.exists() else []

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while len(lines()) < count:
            assert time.monotonic() < deadline, "the cell does not go on"
            time.sleep(0.005)

    months = [f"2026-{month:02}" for month in range(1, 13)]
    killed = open_notebook()
    assert killed.run(OPENING) == ""
    killed.begin(BUILDING)
    wait_for(5)
    killed.kill()
    assert lines() == months[:5]  # the fourth was completed when the fifth was begun, the third long before

    notebook = open_notebook()
    assert notebook.run(OPENING) == ""
    notebook.begin(BUILDING)
    wait_for(8)
    notebook.interrupt()
    assert notebook.ended() == "KeyboardInterrupt"
    assert notebook.run('print(app.show("@last")["status"])') == "cancelled\n"
    edited = BUILDING.replace("    for month", "    # it was interrupted\n    for month")
    assert notebook.run(edited) == "12\n"
    assert sorted(set(lines())) == months
    again = [month for month in months if lines().count(month) > 1]
    assert set(again) <= {*months[3:5], lines()[7]}, lines()
    types = notebook.run(TELLING).split()
    assert (types[0], types[-1], types.count("attempt_started")) == ("submitted", "completed", 3)

    assert notebook.run(OPENING) == ""  # the first cell again: another application over the same journal
    made.unlink()
    assert notebook.run(BUILDING.replace("0.15", "0")) == "12\n"  # completed: the cell run again does it anew
    assert lines() == months
    assert notebook.run(AWAITING) == "['2026-01', '2026-02']\nawaited\n"
    assert notebook.run("app.close()") == ""
