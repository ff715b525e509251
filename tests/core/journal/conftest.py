"""A real journal for each test."""

from __future__ import annotations

import pytest

from ktrdr_ops.core.events import Submitted
from ktrdr_ops.core.journal.decisions import Claim, Start
from ktrdr_ops.core.journal.journal import Journal, open_journal


@pytest.fixture
async def journal(tmp_path):
    opened = open_journal(tmp_path / "journal.db")
    yield opened
    await opened.aclose()


def submitted(key: str = "work:a", digest: str = "d1", **more) -> Submitted:
    return Submitted(operation_type="work", key=key, total_steps=3, parameters={"of": key}, digest=digest, **more)


async def started(journal: Journal, key: str = "work:a", digest: str = "d1", *, fresh: bool = False, **more) -> Claim:
    claim: Claim = await journal.append(Start("work_a", submitted(key, digest, **more), journal.owner(), fresh))
    return claim
