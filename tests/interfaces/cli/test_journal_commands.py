"""``journal``, ``doctor`` and ``config`` as a person and a script see them."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ktrdr_ops.app import open_app
from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.events import ArtifactPublished, Completed, Noted, Submitted
from ktrdr_ops.core.journal.decisions import Note, Say, Start, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.hosts.sandbox import ensure_data_host, stop_hosts
from ktrdr_ops.interfaces.cli.journal import size_text
from ktrdr_ops.interfaces.cli.main import main
from ktrdr_ops.settings import names
from tests.core.journal.test_verify import against_the_rule


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Settings of nobody else, hosts that are not there."""
    for name in [name for name in os.environ if name.startswith("KTRDR_OPS_") or name.endswith("_HOST_SERVICE_URL")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IB_HOST_SERVICE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TRAINING_HOST_SERVICE_URL", f"http://127.0.0.1:{free_port()}")
    return tmp_path


@pytest.fixture
def path(home):
    """A journal with one completed operation that published an object."""
    path = home / "journal.db"
    journal, objects = open_journal(path), ObjectStore(home / "objects")
    asked = Submitted(operation_type="work", key="work:a", total_steps=3, parameters={}, digest="d")
    claim = journal.submit(Start("work_a", asked, journal.owner())).result()
    sha = objects.put(b"content")
    published = ArtifactPublished(kind="k", key="a", object=sha, sha256=sha, size=7)
    facts = (published, Completed(result={"n": 1}))
    journal.submit(Say(tuple(draft(claim.operation_id, 1, fact) for fact in facts))).result()
    journal.submit(Note("", Noted(text="hello"))).result()
    journal.close()
    return path


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def host(**answer):
    """An IB host that is as healthy as it says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer if self.path == "/health/" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys, *words: object) -> tuple[int, dict]:
    code, out, _ = said(capsys, *words, "--json")
    return code, json.loads(out)


def test_a_sound_journal_verifies(path, capsys):
    code, out, _ = said(capsys, "--journal", path, "journal", "verify")
    assert code == 0
    assert out.startswith("✓ verified: 5 events of 1 operation, head 5 ")


def test_verify_says_everything_as_json(path, capsys):
    code, report = document(capsys, "--journal", path, "journal", "verify")
    assert code == 0
    assert (report["ok"], report["events"], report["operations"], report["problems"]) == (True, 5, 1, [])
    assert set(report) == {"ok", "events", "operations", "head", "anchor", "problems"}
    assert report["head"]["position"] == 5


def test_a_changed_event_is_exit_code_4(path, capsys):
    against_the_rule(path, "events_no_update", "UPDATE events SET at = at + 1 WHERE position = 2")
    code, out, _ = said(capsys, "--journal", path, "journal", "verify")
    assert code == 4
    assert out.startswith("✗ broken: ")
    assert "position 2" in out
    code, report = document(capsys, "--journal", path, "journal", "verify")
    assert code == 4
    assert set(report["problems"][0]) == {"kind", "position", "operation_id", "detail"}


def test_a_missing_object_is_exit_code_4(path, home, capsys):
    store = ObjectStore(home / "objects")
    store.path(store.put(b"content")).unlink()
    code, report = document(capsys, "--journal", path, "journal", "verify")
    assert (code, [problem["kind"] for problem in report["problems"]]) == (4, ["object"])


def test_the_head_is_where_the_journal_ends(path, capsys):
    code, head = document(capsys, "--journal", path, "journal", "head")
    assert (code, head["position"], len(head["hash"])) == (0, 5, 64)
    assert said(capsys, "--journal", path, "journal", "head")[1].startswith("position 5  ")


def test_info_says_what_the_file_holds(path, capsys):
    code, info = document(capsys, "--journal", path, "journal", "info")
    assert (code, info["events"], info["operations"]["completed"], info["path"]) == (0, 5, 1, str(path))
    out = said(capsys, "--journal", path, "journal", "info")[1]
    assert out.splitlines()[0] == str(path)
    assert "1 completed" in out


def test_a_backup_can_be_read_as_a_journal_and_is_never_overwritten(path, home, capsys):
    code, made = document(capsys, "--journal", path, "journal", "backup", home / "copy.db")
    assert (code, made["ok"], made["path"]) == (0, True, str(home / "copy.db"))
    assert said(capsys, "--journal", home / "copy.db", "journal", "verify")[0] == 0
    code, error = document(capsys, "--journal", path, "journal", "backup", home / "copy.db")
    assert code == 2
    assert "exists already" in error["error"]["message"]


@pytest.mark.parametrize("name", ["info", "verify", "head"])
def test_looking_at_no_journal_makes_none(home, capsys, name):
    assert said(capsys, "--journal", home / "none.db", "journal", name)[0] == 7
    assert not (home / "none.db").exists()


def test_a_text_file_is_no_journal_and_stays_as_it_is(home, capsys):
    (home / "notes.txt").write_text("not a database, but long enough to be looked at as one\n" * 100)
    code, error = document(capsys, "--journal", home / "notes.txt", "journal", "verify")
    assert code == 7
    assert "is not a journal" in error["error"]["message"]
    assert (home / "notes.txt").read_text().startswith("not a database")


def test_doctors_findings_stand_below_one_another(home, capsys):
    lines = said(capsys, "--sandbox", "doctor")[1].splitlines()
    wanted = r"\S+ \w+ +(Python|journal|embedded data host|embedded training host) +"
    columns = [found.end() for line in lines if (found := re.match(wanted, line))]
    assert (len(columns), len(set(columns))) == (4, 1)


def test_config_names_each_setting_with_its_origin(home, capsys):
    code, settings = document(capsys, "--journal", home / "j.db", "config")
    assert code == 0
    assert tuple(settings) == names()
    assert settings["journal"] == {"value": str(home / "j.db"), "origin": "flag"}
    assert settings["ib_host_url"]["origin"] == "environment"
    assert settings["pacing"] == {"value": True, "origin": "default"}
    out = said(capsys, "config")[1]
    assert all(name in out for name in names())


def test_config_in_the_sandbox_names_no_host_but_its_own(home, capsys):
    _, settings = document(capsys, "--sandbox", "config")
    for name in ("ib_host_url", "training_host_url"):
        assert settings[name] == {"value": None, "origin": "sandbox"}
    home_of_it = Path(settings["journal"]["value"]).parent
    url = ensure_data_host(home_of_it)
    try:
        assert document(capsys, "--sandbox", "config")[1]["ib_host_url"] == {"value": url, "origin": "sandbox"}
    finally:
        stop_hosts(home_of_it)


def test_config_names_the_file_that_said_so(home, capsys):
    (home / "ktrdr-ops.toml").write_text('data_format = "csv"\n')
    _, settings = document(capsys, "config")
    assert settings["data_format"] == {"value": "csv", "origin": str(home / "ktrdr-ops.toml")}


def checks(capsys, *words: object) -> tuple[int, dict[str, str]]:
    code, found = document(capsys, *words, "doctor")
    assert found["ok"] == (code == 0)
    return code, {check["name"]: check["verdict"] for check in found["checks"]}


def test_doctor_without_a_host_is_exit_code_5_and_makes_nothing(home, capsys):
    code, found = checks(capsys, "--journal", home / "new" / "journal.db")
    assert (code, found["IB host"], found["training host"], found["journal"]) == (5, "bad", "note", "ok")
    assert not (home / "new").exists()


def test_doctor_with_a_connected_host_finds_all_well(path, capsys, monkeypatch):
    with host(healthy=True, ib_status={"connected": True, "connection_count": 1}) as url:
        monkeypatch.setenv("IB_HOST_SERVICE_URL", url)
        code, found = checks(capsys, "--journal", path)
        out = said(capsys, "--journal", path, "doctor")[1]
    assert (code, found["IB host"], found["SQLite"], found["journal"]) == (0, "ok", "ok", "ok")
    assert all(line[:1] in "✓!✗ " for line in out.splitlines())
    assert "gateway connected" in out


def test_doctor_sees_a_gateway_that_is_not_connected(path, capsys, monkeypatch):
    with host(healthy=True, ib_status={"connected": False, "connection_count": 0}) as url:
        monkeypatch.setenv("IB_HOST_SERVICE_URL", url)
        code, out, _ = said(capsys, "--journal", path, "doctor")
    assert code == 5
    assert "its gateway is not connected" in out


def test_doctor_says_why_a_journal_cannot_be_used(home, capsys):
    code, found = checks(capsys, "--journal", home)
    assert (code, found["journal"]) == (7, "bad")


def test_doctor_finds_a_data_folder_that_is_a_file(home, capsys, monkeypatch):
    (home / "taken").write_text("")
    monkeypatch.setenv("KTRDR_OPS_DATA_DIR", str(home / "taken"))
    code, found = checks(capsys, "--journal", home / "j.db")
    assert (code, found["data folder"]) == (2, "bad")


def test_doctor_says_what_runs(home, capsys):
    with open_app(home / "j.db") as app:
        journal = app._app.journal
        for key, digest in (("work:a", "1"), ("work:b", "2")):
            asked = Submitted(operation_type="work", key=key, total_steps=3, parameters={}, digest=digest)
            journal.submit(Start("work", asked, journal.owner())).result()
        code, out, _ = said(capsys, "--journal", home / "j.db", "doctor")
    assert f"is running (process {os.getpid()})" in out
    assert code == 5


def test_doctor_warns_of_a_journal_that_others_may_read(path, capsys):
    path.chmod(0o644)
    assert checks(capsys, "--journal", path)[1]["permissions"] == "note"
    path.chmod(0o600)
    assert "permissions" not in checks(capsys, "--journal", path)[1]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_are_told_in_units_that_people_read(size, text):
    assert size_text(size) == text
