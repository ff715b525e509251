"""A domain as the README tells it: built outside of the project, installed, run, killed and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Add a domain\n")[2].partition("\n## ")[0]
PAGES = 8


def told(language: str) -> str:
    return "\n\n".join(re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where the README's package is installed."""
    package = tmp_path / "ktrdr-reports"
    (package / "ktrdr_reports").mkdir(parents=True)
    (package / "pyproject.toml").write_text(told("toml"))
    (package / "ktrdr_reports" / "__init__.py").write_text(told("py"))
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    installed = subprocess.run(
        [*pip, "--target", str(site), str(package)], capture_output=True, text=True, timeout=100, check=False
    )
    assert installed.returncode == 0, installed.stderr
    return site


@pytest.mark.slow
def test_four_steps_make_a_domain_that_survives_a_kill(site, tmp_path):
    assert SECTION.count("**1.") == SECTION.count("**4.") == 1
    own = {name: value for name, value in os.environ.items() if not name.startswith("KTRDR_OPS_")}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "HOME": str(tmp_path)}
    journal = tmp_path / "journal.db"
    program = [sys.executable, "-m", "ktrdr_ops", "--journal", str(journal)]
    build = [*program, "reports", "build", "weekly", "--pages", str(PAGES), "--seconds", "0.2"]

    helped = subprocess.run([*program, "--help"], env=own, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Write reports." in helped.stdout

    running = subprocess.Popen(build, env=own, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while steps(journal) < 3:
        assert time.monotonic() < deadline
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()

    again = subprocess.run([*build, "--json"], env=own, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    said = json.loads(again.stdout)
    assert (said["attempt"], said["result"]) == (2, {"path": "weekly.txt", "pages": PAGES})
    assert (tmp_path / "weekly.txt").read_text().split("\n")[:-1] == [f"page {page}" for page in range(1, PAGES + 1)]

    wrong = subprocess.run(
        [*program, "reports", "build", "a b"], env=own, cwd=tmp_path, capture_output=True, check=False
    )
    assert wrong.returncode == 2


def steps(journal: Path) -> int:
    """How many the journal holds, read with nothing but sqlite3."""
    if not journal.exists():
        return 0
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        found: int = connection.execute("SELECT count(*) FROM events WHERE type = 'step_completed'").fetchone()[0]
        return found
    except sqlite3.OperationalError:  # it is just being made
        return 0
    finally:
        connection.close()
