"""A made-up next schema, so that migrating can be tested before there is one: the real migrations and one more."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

MIGRATIONS = Path(__file__).parents[2] / "migrations"
NEXT = "9001"

_SCRIPT = textwrap.dedent('''
    """Operations get labels and a priority."""

    import sqlalchemy as sa
    from alembic import op

    revision = "{next}"
    down_revision = "{newest}"


    def upgrade():
        op.create_table(
            "labels",
            sa.Column("operation_id", sa.Text, primary_key=True),
            sa.Column("label", sa.Text, nullable=False),
        )
        op.add_column("operations", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        op.execute("INSERT INTO labels SELECT operation_id, operation_type FROM operations")
        op.execute("CREATE INDEX labels_of ON labels (label, operation_id)")
''')


def scripts_with_a_next_schema(folder: Path) -> Path:
    """A folder of migrations that go one schema further than this release's."""
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    newest = sorted(path.name for path in (folder / "versions").glob("[0-9]*.py"))[-1].partition("_")[0]
    (folder / "versions" / f"{NEXT}_labels.py").write_text(_SCRIPT.format(next=NEXT, newest=newest))
    return folder
