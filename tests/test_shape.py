"""The shape of the house: which room may know what. import-linter's contracts stand in pyproject.toml."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

import grimp
import pytest

import ktrdr_ops

PACKAGE = Path(ktrdr_ops.__file__).parent
DOMAINS = sorted(path.parent.name for path in (PACKAGE / "domains").glob("*/__init__.py"))
HEAVY = {
    *("alembic", "exchange_calendars", "fastapi", "httpx", "numpy", "pandas", "pyarrow", "pydantic", "sqlalchemy"),
    *("jax", "optax", "safetensors", "talib", "yaml"),
}
FOREIGN = re.compile(
    r"(?<![a-z])(?:symbol|timeframe|ohlcv|epoch|batch_?size|training|data_?load)s?(?![a-z])", re.IGNORECASE
)
BUCKETS = {"utils.py", "helpers.py", "common.py", "misc.py", "types.py"}


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has loaded when it ends."""
    watch = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
    ran = subprocess.run(
        [sys.executable, "-c", watch + dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.rsplit("LOADED", 1)[1].split())


COMMAND_LINE = """
import runpy
sys.argv[0] = "ktrdr-ops"
runpy.run_module("ktrdr_ops", run_name="__main__", alter_sys=True)
"""


# What is loaded


def test_core_loads_without_any_domain_door_or_host():
    code = """
    import importlib, pkgutil, ktrdr_ops.core
    for module in pkgutil.walk_packages(ktrdr_ops.core.__path__, "ktrdr_ops.core."):
        importlib.import_module(module.name)
    """
    ours = {name for name in loaded_by(code) if name.startswith("ktrdr_ops")}
    assert len(ours) > 10
    assert {name for name in ours if not (name + ".").startswith("ktrdr_ops.core.")} == {"ktrdr_ops"}


def test_importing_the_package_loads_nothing_of_it():
    assert {name for name in loaded_by("import ktrdr_ops") if name.startswith("ktrdr_ops")} == {"ktrdr_ops"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domains_entry_point_loads_nothing_heavy(domain):
    code = f"from ktrdr_ops.domains.{domain} import domain; assert domain.name"
    assert loaded_by(code) & HEAVY == set()


def test_help_loads_nothing_heavy():
    assert loaded_by(COMMAND_LINE, "--help") & HEAVY == set()


def test_list_loads_nothing_heavy(tmp_path):
    journal = str(tmp_path / "journal.db")
    loaded_by("from ktrdr_ops.core.journal.journal import open_journal; open_journal(sys.argv[1]).close()", journal)
    assert loaded_by(COMMAND_LINE, "--journal", journal, "list") & HEAVY == set()


def test_the_check_of_what_is_loaded_sees_what_is_loaded():
    assert "json" in loaded_by("import json")


# Who knows whom


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one import cycle; empty without any."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        modules: list[str] = error.args[1]
        return modules
    return []


def test_there_are_no_import_cycles():
    graph = grimp.build_graph("ktrdr_ops", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 20
    assert cycle(imports) == []


def test_the_check_of_cycles_finds_one():
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_the_public_names_are_sorted_and_all_there():
    assert ktrdr_ops.__all__ == sorted(ktrdr_ops.__all__)
    assert dir(ktrdr_ops) == ktrdr_ops.__all__
    for name in ktrdr_ops.__all__:
        assert getattr(ktrdr_ops, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ktrdr_ops.nothing


# What is where


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_has_the_four_files_and_its_engine(domain):
    folder = PACKAGE / "domains" / domain
    assert {"operations.py", "connector.py", "renderer.py", "interface.py"} <= {path.name for path in folder.iterdir()}
    assert (folder / "engine" / "__init__.py").is_file()


def test_the_domains_have_the_same_files():
    names = {domain: {path.name for path in (PACKAGE / "domains" / domain).glob("*.py")} for domain in DOMAINS}
    assert DOMAINS
    assert all(files == names[DOMAINS[0]] for files in names.values()), names


def test_there_are_no_buckets():
    assert [path for path in sources() if path.name in BUCKETS] == []


def words(source: str) -> Iterator[tuple[int, str]]:
    """Each identifier and each text that is not a docstring, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def foreign_words(source: str) -> list[tuple[int, str]]:
    return [(line, word) for line, word in words(source) if FOREIGN.search(word)]


def test_core_knows_no_domains_words():
    found = {path: foreign_words(path.read_text(encoding="utf-8")) for path in sources(PACKAGE / "core")}
    assert {str(path.relative_to(PACKAGE)): lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    ["symbol = 1", "x.symbols", "def f(batch_size): ...", "f('data_load')", "f(f'{x} epoch')", "class Ohlcv: ..."],
)
def test_the_check_of_words_finds_a_domains_word(source):
    assert foreign_words(source)


@pytest.mark.parametrize(
    "source", ['"""A symbol."""', 'def f():\n    """Each epoch."""', "restraining = 1", "# training"]
)
def test_the_check_of_words_lets_prose_and_other_words_be(source):
    assert foreign_words(source) == []


def broad_excepts(source: str) -> list[int]:
    """Lines that catch everything, neither raise it again nor give the reason on the line."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = (
            {"BaseException"} if node.type is None else {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
        )
        raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        reason = re.sub(
            r"#\s*(noqa|type: ignore|pragma)\S*( [A-Z0-9, ]+)?", "", lines[node.lineno - 1].partition(":")[2]
        )
        if caught & {"Exception", "BaseException"} and not raises and len(reason.partition("#")[2].split()) < 3:
            found.append(node.lineno)
    return found


def test_whatever_catches_everything_says_why():
    found = {path: broad_excepts(path.read_text(encoding="utf-8")) for path in sources()}
    assert {str(path.relative_to(PACKAGE)): lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("handler", "line"),
    [
        ("except Exception:", [3]),
        ("except:", [3]),
        ("except (OSError, Exception) as error:", [3]),
        ("except Exception:  # noqa: BLE001", [3]),
        ("except Exception:  # a stranger's code may raise anything", []),
        ("except ValueError:", []),
    ],
)
def test_the_check_of_broad_excepts_finds_those_without_a_reason(handler, line):
    assert broad_excepts(f"try:\n    f()\n{handler}\n    pass\n") == line
    assert broad_excepts(f"try:\n    f()\n{handler}\n    undo()\n    raise\n") == []
