"""``python -m ktrdr_ops.hosts data|training``: one embedded host as a process of its own, for the sandbox."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from ktrdr_ops.hosts.sandbox import announce


def main() -> None:
    """Serve until idle, and say in the state file, if there is one, where."""
    os.umask(0o077)  # what it writes is its user's alone
    options = _parser().parse_args()
    options.serve(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ktrdr_ops.hosts", description=__doc__)
    hosts = parser.add_subparsers(required=True)
    data, training = hosts.add_parser("data"), hosts.add_parser("training")
    for host, serve in ((data, _serve_data), (training, _serve_training)):
        host.add_argument("--port", type=int, default=0)
        host.add_argument("--idle-exit", type=float)
        host.add_argument("--state-file", type=Path)
        host.set_defaults(serve=serve)
    data.add_argument("--latency", type=float, default=0.0)
    data.add_argument("--folder", type=Path)
    training.add_argument("--data-dir", type=Path, required=True)
    training.add_argument("--models-dir", type=Path, required=True)
    training.add_argument("--generation", type=int, choices=[1, 2], default=2)
    training.add_argument("--max-sessions", type=int, default=1)
    training.add_argument("--pace", type=float, default=0.0, help="the least seconds that an epoch takes")
    training.add_argument("--lying-cancel", action="store_true", help="answer a cancel, and go on")
    return parser


def _serve_data(options: argparse.Namespace) -> None:
    from ktrdr_ops.hosts.data_host import serve
    from ktrdr_ops.hosts.series import SeriesSource

    ready = partial(_announce, options.state_file, {"latency": options.latency})
    series = SeriesSource(options.folder)
    serve(options.port, latency=options.latency, series=series, idle_exit=options.idle_exit, ready=ready)


def _serve_training(options: argparse.Namespace) -> None:
    from ktrdr_ops.hosts.training.host import serve

    told = {name: getattr(options, name) for name in ("generation", "max_sessions", "pace")}
    folders = {"data_dir": options.data_dir, "models_dir": options.models_dir}
    state = {**told, **{name: str(folder) for name, folder in folders.items()}}
    ready = partial(_announce, options.state_file, state)
    lying, idle_exit = options.lying_cancel, options.idle_exit
    serve(options.port, **folders, **told, lying=lying, idle_exit=idle_exit, ready=ready)


def _announce(state_file: Path | None, options: dict[str, object], port: int) -> None:
    if state_file is not None:
        announce(state_file, port, options)


if __name__ == "__main__":
    main()
