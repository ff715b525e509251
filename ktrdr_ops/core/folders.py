"""Folders whose names are on the disk.

A synced file is lost with its name: that is on the disk when the folder which holds it was synced, and so on upwards.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and what is missing above it; on return their names are on the disk.

    The folder's own name is synced also when it was there: whoever made it may have been killed in between. A folder
    above that may not be read cannot be synced, and is passed over.
    """
    missing = [above for above in folder.parents if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in (folder, *missing):
        try:
            sync_folder(made.parent)
        except PermissionError:
            continue
