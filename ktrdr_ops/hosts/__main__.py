"""``python -m ktrdr_ops.hosts data``: one embedded host as a process of its own, for the sandbox."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from ktrdr_ops.hosts.data_host import serve
from ktrdr_ops.hosts.series import SeriesSource


def main() -> None:
    """Serve until idle, and say in the state file where."""
    os.umask(0o077)  # what it writes is its user's alone
    parser = argparse.ArgumentParser(prog="python -m ktrdr_ops.hosts", description=__doc__)
    parser.add_argument("host", choices=["data"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--idle-exit", type=float)
    parser.add_argument("--state-file", type=Path, required=True)
    options = parser.parse_args()

    def ready(port: int) -> None:
        state = {"pid": os.getpid(), "port": port, "latency": options.latency}
        temporary = options.state_file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, options.state_file)

    series = SeriesSource(options.folder)
    serve(options.port, latency=options.latency, series=series, idle_exit=options.idle_exit, ready=ready)


if __name__ == "__main__":
    main()
