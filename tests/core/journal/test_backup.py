"""A backup is a good copy before it has its name."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys

import pytest

from ktrdr_ops.core.errors import InvalidValue, JournalCorrupt, JournalRefused
from ktrdr_ops.core.events import Completed, Progressed
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.decisions import Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.maintenance import backup, info
from ktrdr_ops.core.journal.verify import verify_file
from tests.core.journal.conftest import started
from tests.core.journal.test_verify import against_the_rule


async def worked(journal, key: str = "work:a", updates: int = 50):
    claim = await started(journal, key)
    for items in range(updates):
        journal.say(claim.operation_id, 1, Progressed(step=1, percentage=0.0, message="going on", items=items))
    await journal.append(Say((draft(claim.operation_id, 1, Completed(result={"rows": updates})),)))
    return claim


async def test_a_backup_holds_what_the_journal_holds(journal, tmp_path):
    claim = await worked(journal)
    target = tmp_path / "copies" / "copy.db"
    target.parent.mkdir()
    made = await backup(journal, target)
    head = await journal.head()
    assert made["ok"]
    assert (made["path"], made["events"], made["operations"]) == (str(target), 53, 1)
    assert made["head"] == {"position": head.position, "hash": head.hash}
    copy = open_journal(target)
    state, after = await copy.state(claim.operation_id), await copy.head()
    again = await worked(copy, "work:b")
    await copy.aclose()
    assert state == await journal.state(claim.operation_id)
    assert after == head
    assert again.attempt == 1
    assert (await verify_file(target)).ok
    assert [path.name for path in target.parent.iterdir() if path.name.endswith(".partial")] == []


async def test_a_backup_is_for_its_owner_alone(journal, tmp_path):
    await worked(journal)
    await backup(journal, tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


async def test_a_backup_never_replaces_a_file(journal, tmp_path):
    (tmp_path / "copy.db").write_text("mine")
    with pytest.raises(InvalidValue, match="exists already"):
        await backup(journal, tmp_path / "copy.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidValue, match="exists already"):
        await backup(journal, tmp_path / "link.db")
    assert (tmp_path / "copy.db").read_text() == "mine"


async def test_a_backup_needs_its_folder(journal, tmp_path):
    with pytest.raises(InvalidValue, match="there is no folder"):
        await backup(journal, tmp_path / "none" / "copy.db")
    with pytest.raises(InvalidValue, match="NUL"):
        await backup(journal, tmp_path / "a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_may_not_be_written_is_refused(journal, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(JournalRefused, match="may not be written"):
        await backup(journal, folder / "copy.db")


async def test_a_broken_journal_gets_no_backup_and_a_sound_one_does(journal, tmp_path):
    await worked(journal)
    await backup(journal, tmp_path / "before.db")
    against_the_rule(journal.path, "events_no_update", "UPDATE events SET at = at + 1 WHERE position = 3")
    with pytest.raises(JournalCorrupt, match="1 problem"):
        await backup(journal, tmp_path / "after.db")
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("journal.db"))
    assert names == ["before.db"]


@pytest.mark.slow
async def test_a_journal_is_copied_while_another_process_writes(journal, tmp_path):
    await worked(journal, updates=5000)
    code = (
        "import asyncio, sys\nfrom ktrdr_ops.core.journal.journal import open_journal\n"
        "from tests.core.journal.test_backup import worked\n"
        "async def main():\n    journal = open_journal(sys.argv[1])\n    print('open', flush=True)\n"
        "    n = 0\n    while True:\n        n += 1\n        await worked(journal, f'other:{n}')\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(journal.path)], stdout=subprocess.PIPE)
    try:
        await asyncio.to_thread(process.stdout.readline)
        before = (await journal.head()).position
        made = [await backup(journal, tmp_path / f"copy{n}.db") for n in range(3)]
        after = (await journal.head()).position
    finally:
        process.kill()
        process.communicate()
    positions = [copy["head"]["position"] for copy in made]
    assert before <= positions[0] <= positions[-1] <= after
    assert after > before
    assert all(copy["ok"] for copy in made)


async def test_giving_up_leaves_nothing_behind(journal, tmp_path):
    await worked(journal, updates=20_000)
    folder = tmp_path / "copies"
    folder.mkdir()
    task = asyncio.create_task(backup(journal, folder / "copy.db"))
    async with asyncio.timeout(10):
        while not list(folder.iterdir()):
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(folder.iterdir()) == []
    assert (await backup(journal, folder / "copy.db"))["ok"]


async def test_info_says_what_the_file_is_and_holds(journal):
    await worked(journal)
    running = await started(journal, "work:b")
    said = await info(journal)
    assert (said["path"], said["schema"], said["events"]) == (str(journal.path), "0001", 55)
    assert said["operations"] | {"running": 1, "completed": 1} == said["operations"]
    assert sum(said["operations"].values()) == 2
    assert said["sqlite"]["version"] == engine.sqlite.sqlite_version
    assert said["size"] == said["pages"]["page_size"] * said["pages"]["page_count"] or said["wal_size"] > 0
    assert len(said["journal_id"]) == 32
    assert said["anchor"]["state"] in ("anchored", "unanchored")
    assert running.attempt == 1


async def test_a_copy_that_finds_no_room_leaves_nothing_behind(journal, tmp_path):
    await worked(journal, updates=5000)
    code = (
        "import asyncio, resource, sys\nfrom pathlib import Path\nfrom ktrdr_ops.core.errors import JournalError\n"
        "from ktrdr_ops.core.journal.journal import open_journal\n"
        "from ktrdr_ops.core.journal.maintenance import backup\n"
        "async def main():\n    journal = open_journal(sys.argv[1], readonly=True)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    try:\n        await backup(journal, Path(sys.argv[2]))\n"
        "    except JournalError as error:\n        print(error)\n"
        "asyncio.run(main())\n"
    )
    folder = tmp_path / "copies"
    folder.mkdir()
    arguments = [sys.executable, "-c", code, str(journal.path), str(folder / "copy.db")]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True)
    assert "the copy could not be made" in ran.stdout
    assert list(folder.iterdir()) == []


async def test_a_damaged_file_gets_no_backup(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await worked(journal, updates=500)
    await journal.aclose()
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in range(4, len(content) // size):
        content[page * size : page * size + 16] = b"\xa5" * 16
    path.write_bytes(bytes(content))
    with pytest.raises(JournalCorrupt):
        await backup(open_journal(path, readonly=True), tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


async def test_a_filesystem_without_hard_links_gets_its_backup_too(journal, tmp_path, monkeypatch):
    def link(*paths) -> None:
        raise PermissionError(1, "Operation not permitted")

    await worked(journal)
    monkeypatch.setattr(os, "link", link)
    assert (await backup(journal, tmp_path / "copy.db"))["ok"]
    assert (await verify_file(tmp_path / "copy.db")).ok


async def test_of_two_backups_to_one_name_one_is_refused(journal, tmp_path):
    await worked(journal)
    made = await asyncio.gather(*(backup(journal, tmp_path / "copy.db") for _ in range(2)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["InvalidValue", "dict"]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []
