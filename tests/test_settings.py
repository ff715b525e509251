"""Which setting counts, and that a sandbox stays apart from the real store."""

from __future__ import annotations

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
