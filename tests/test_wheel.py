"""What is installed from the wheel: it holds what it needs, and works far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run(*command: str, **kw: Any) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **kw)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return str(ran.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_migrations_the_types_the_sample_data_and_its_notice(wheel):
    names = set(ZipFile(wheel).namelist())
    tracked = run("git", "-C", str(ROOT), "ls-files", "ktrdr_ops", "migrations").split()
    assert "ktrdr_ops/py.typed" in names
    assert {f"ktrdr_ops/{name}" if name.startswith("migrations/") else name for name in tracked} <= names
    assert "ktrdr_ops/migrations/versions/0001_journal.py" in names
    samples = [name for name in names if name.endswith(".csv.gz")]
    assert {name.rsplit("/", 1)[1].split(".")[0] for name in samples} == {"AAPL", "GOOG", "IBM", "MSFT"}
    notice = ZipFile(wheel).read("ktrdr_ops/NOTICE").decode()
    assert "Quandl WIKI Prices" in notice
    assert "permission to redistribute" in notice


def test_the_wheel_holds_nothing_else(wheel):
    names = ZipFile(wheel).namelist()
    assert [name for name in names if "test" in name.lower() or name.endswith((".pyc", ".db"))] == []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ktrdr_ops"}


def test_an_installed_package_opens_a_journal_and_migrates_it(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    code = (
        "import ktrdr_ops, sys; from ktrdr_ops.core.journal.journal import open_journal;"
        "open_journal(sys.argv[1]).close(); print(ktrdr_ops.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    said = run(sys.executable, "-c", code, str(tmp_path / "journal.db"), cwd=tmp_path, env=environment)
    assert Path(said.strip()).is_relative_to(site)
    assert (tmp_path / "journal.db").stat().st_size > 0
