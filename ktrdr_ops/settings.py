"""Settings: one frozen value each, with where it came from.

The first that says something wins: a flag, the environment (``KTRDR_OPS_*``, and the users' own
``IB_HOST_SERVICE_URL`` and ``TRAINING_HOST_SERVICE_URL``), ``./ktrdr-ops.toml``, the user's file, the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import platformdirs

from ktrdr_ops.core.errors import InvalidValue

_USERS_OWN = {"ib_host_url": "IB_HOST_SERVICE_URL", "training_host_url": "TRAINING_HOST_SERVICE_URL"}
_FORMATS = ("parquet", "csv")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _home() -> Path:
    return Path(platformdirs.user_data_dir("ktrdr-ops", appauthor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things lie and how hosts are treated.

    ``pacing``: whether requests to the IB host keep to IB's limits. ``data_format``: ``parquet`` or ``csv``, how the
    series that people read are written. ``as_of``: what "now" is for loads (ISO-8601; None is the clock).
    """

    journal: Path = field(default_factory=lambda: _home() / "journal.db", metadata={"help": "the journal's file"})
    data_dir: Path = field(
        default_factory=lambda: _home() / "data", metadata={"help": "the folder of the series that people read"}
    )
    models_dir: Path = field(
        default_factory=lambda: _home() / "models", metadata={"help": "the folder of trained models"}
    )
    ib_host_url: str = field(default="http://localhost:5001", metadata={"help": "the IB host service"})
    training_host_url: str = field(default="http://localhost:5002", metadata={"help": "the training host service"})
    pacing: bool = field(default=True, metadata={"help": "keep to IB's request limits"})
    data_format: str = field(default="parquet", metadata={"help": "how series are written: parquet or csv"})
    as_of: str | None = field(default=None, metadata={"help": "what 'now' is for loads; empty is the clock"})
    sandbox: bool = field(
        default=False, metadata={"help": "use the embedded hosts, with a journal and data of their own"}
    )
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a value came from: flag, environment, a file's path, sandbox, default."""
        return self.origins.get(name, "default")

    def document(self) -> dict[str, dict[str, Any]]:
        """Each value with its origin, as ``config`` prints it."""
        return {name: {"value": _plain(getattr(self, name)), "origin": self.origin(name)} for name in names()}


def names() -> tuple[str, ...]:
    """The settings, in their order."""
    return tuple(f.name for f in fields(Settings) if f.name != "origins")


def describe(name: str) -> str:
    """What a setting says, in a few words."""
    return next(str(f.metadata["help"]) for f in fields(Settings) if f.name == name)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_file: Path | None = None,
) -> Settings:
    """The settings for a process. Raises InvalidValue that names the origin of a value that cannot be meant."""
    environment = os.environ if environment is None else environment
    user_file = user_file or Path(platformdirs.user_config_dir("ktrdr-ops", appauthor=False)) / "config.toml"
    local = (folder or Path.cwd()) / "ktrdr-ops.toml"
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
        ("environment", _from_environment(environment)),
        (str(local), _from_file(local)),
        (str(user_file), _from_file(user_file)),
    ]
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in chosen:
                chosen[name] = _checked(name, value, origin)
                origins[name] = origin
    settings = Settings(**chosen, origins=origins)
    return _in_sandbox(settings, "sandbox" in layers[1][1]) if settings.sandbox else settings


def _in_sandbox(settings: Settings, in_environment: bool) -> Settings:
    """Everything apart from the real store. A journal or folder that a flag names stays; one that a variable names only
    where a variable asks for the sandbox too: else it is meant for real work."""
    meant = ("flag", "environment") if in_environment else ("flag",)
    named = {name for name, origin in settings.origins.items() if origin in meant}
    home = _home() / "sandbox"
    if "journal" in named:
        home = settings.journal.parent
    apart: dict[str, Any] = {
        "journal": home / "journal.db",
        "data_dir": home / "data",
        "models_dir": home / "models",
        "pacing": False,
        "as_of": SANDBOX_AS_OF,
    }
    changes = {name: value for name, value in apart.items() if name not in named}
    return replace(settings, **changes, origins={**settings.origins, **dict.fromkeys(changes, "sandbox")})


SANDBOX_AS_OF = "2013-03-02T00:00:00+00:00"
"""The sandbox's "now": the day after the last bar of the series that are shipped with it."""


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found = {
        name: environment[f"KTRDR_OPS_{name.upper()}"] for name in names() if f"KTRDR_OPS_{name.upper()}" in environment
    }
    for name, variable in _USERS_OWN.items():
        if name not in found and variable in environment:
            found[name] = environment[variable]
    return found


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidValue(f"{path} cannot be read: {error}", hint="Mend or remove the file.") from error
    unknown = sorted(set(values) - set(names()))
    if unknown:
        raise InvalidValue(f"{path}: there is no setting {unknown[0]!r}", hint=f"The settings: {', '.join(names())}")
    return values


def _checked(name: str, value: Any, origin: str) -> Any:
    def refuse(why: str) -> InvalidValue:
        return InvalidValue(f"{name} ({origin}): {value!r} {why}")

    if name in ("journal", "data_dir", "models_dir"):
        if "\0" in str(value) or not str(value).strip():
            raise refuse("is no path")
        return Path(_path(str(value), refuse)).expanduser().absolute()
    if name in ("pacing", "sandbox"):
        if isinstance(value, bool):
            return value
        if str(value).lower() in _TRUE + _FALSE:
            return str(value).lower() in _TRUE
        raise refuse("is neither true nor false")
    if name in _USERS_OWN:
        parts = urlsplit(str(value))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise refuse("is no http:// address")
        return str(value).rstrip("/")
    if name == "data_format" and value not in _FORMATS:
        raise refuse(f"is none of {', '.join(_FORMATS)}")
    if name == "as_of":
        return _checked_moment(str(value), refuse)
    return value


def _checked_moment(text: str, refuse: Callable[[str], InvalidValue]) -> str | None:
    """A date or time as it is written; None for an empty text."""
    try:
        if text:
            datetime.fromisoformat(text)
    except ValueError:
        raise refuse("is no date or time, such as 2024-01-31") from None
    return text or None


def _path(text: str, refuse: Callable[[str], InvalidValue]) -> str:
    """The path of ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``file:///absolute.db``; of what is no URL,
    itself."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    if scheme not in ("sqlite", "sqlite+aiosqlite", "file") or not rest.startswith("/") or "?" in rest:
        raise refuse("is no file: a path, sqlite:///PATH or file:///PATH")
    return unquote(rest if scheme == "file" else rest[1:])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
