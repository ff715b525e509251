"""Which setting counts, and that a sandbox stays apart from the real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.settings import load_settings

REAL = {"KTRDR_OPS_JOURNAL": "/real/journal.db", "KTRDR_OPS_DATA_DIR": "/real/data"}


def test_a_sandbox_that_a_flag_asks_for_ignores_the_variables_of_the_real_store(tmp_path):
    settings = load_settings({"sandbox": True}, environment=REAL, folder=tmp_path, user_file=tmp_path / "none.toml")
    assert not str(settings.journal).startswith("/real")
    assert not str(settings.data_dir).startswith("/real")
    assert settings.origin("data_dir") == "sandbox"


def test_a_flag_and_a_sandbox_that_a_variable_asks_for_name_their_own_places(tmp_path):
    files = {"folder": tmp_path, "user_file": tmp_path / "none.toml"}
    by_flag = load_settings({"sandbox": True, "journal": "/mine/j.db"}, environment=REAL, **files)
    assert (str(by_flag.journal), str(by_flag.data_dir)) == ("/mine/j.db", "/mine/data")
    by_variable = load_settings({}, environment={**REAL, "KTRDR_OPS_SANDBOX": "true"}, **files)
    assert str(by_variable.data_dir) == "/real/data"


def test_without_a_sandbox_the_variables_count(tmp_path):
    settings = load_settings({}, environment=REAL, folder=tmp_path, user_file=tmp_path / "none.toml")
    assert str(settings.journal) == "/real/journal.db"


def journal(value, tmp_path):
    return load_settings({"journal": value}, environment={}, folder=tmp_path, user_file=tmp_path / "none.toml").journal


@pytest.mark.parametrize(
    "url", ["sqlite:////a/my%20j.db", "sqlite+aiosqlite:////a/my%20j.db", "file:///a/my%20j.db", "/a/my j.db"]
)
def test_a_journal_is_named_by_a_path_or_a_url(url, tmp_path):
    assert journal(url, tmp_path) == Path("/a/my j.db")
    assert journal("sqlite:///j.db", tmp_path) == Path.cwd() / "j.db"


@pytest.mark.parametrize("url", ["postgresql://here/it", "sqlite://j.db", "file://host/j.db", "sqlite:///j.db?mode=ro"])
def test_a_url_that_is_no_file_is_refused(url, tmp_path):
    with pytest.raises(InvalidValue, match="is no file"):
        journal(url, tmp_path)


def as_of(value, tmp_path):
    variables = {"KTRDR_OPS_AS_OF": value}
    return load_settings({}, environment=variables, folder=tmp_path, user_file=tmp_path / "none.toml").as_of


def test_what_now_is_must_be_a_date_or_a_time(tmp_path):
    assert as_of("2024-01-31", tmp_path) == "2024-01-31"
    assert as_of("2024-01-31T14:30+00:00", tmp_path) == "2024-01-31T14:30+00:00"
    assert as_of("", tmp_path) is None
    with pytest.raises(InvalidValue, match="as_of \\(environment\\): 'whenever' is no date or time"):
        as_of("whenever", tmp_path)
