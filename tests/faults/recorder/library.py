"""Compiles the recorder, once for each content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("recorder.c")


def library() -> Path:
    """The shared library to preload. Skips the test where it cannot be made, which is never so in CI."""
    if sys.platform != "linux":
        pytest.skip("writes and syncs are recorded by LD_PRELOAD, which is Linux's")
    compiler = shutil.which("cc")
    missing = "no C compiler (cc): writes and syncs cannot be recorded"
    if compiler is None and os.environ.get("CI"):
        pytest.fail(missing)
    if compiler is None:
        pytest.skip(missing)
    content = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ktrdr-ops-faults-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / f"recorder-{content}.so"
    if not made.exists():
        partial = made.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(partial), str(SOURCE), "-ldl", "-lpthread"],
            check=True,
        )
        partial.replace(made)
    return made
