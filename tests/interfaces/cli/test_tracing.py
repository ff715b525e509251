"""lineage: both ways from an operation or a file, with the evidence for each step."""

from __future__ import annotations

import pytest

from tests.interfaces.cli.conftest import Cli


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """one made a toy of nothing that is named; two used it, and one that nobody published; three used two's."""
    made = Cli(tmp_path_factory.mktemp("chain"))
    for name, *uses in (("one",), ("two", "one", "ugly"), ("three", "two")):
        options = [option for use in uses for option in ("--use", use)]
        assert made("toy", "work", name, "--pieces", "1", "--publish", f"{name}.toy", *options).code == 0
    return made


def id_of(cli, name):
    return cli.rows("SELECT operation_id FROM operations WHERE key = ?", f"toy_work:{name}")[0][0]


def test_it_walks_to_what_it_was_made_from(chain):
    found = chain("lineage", id_of(chain, "three"), "--json").json
    assert found["operation_id"] == id_of(chain, "three")
    (two,) = found["inputs"]
    assert (two["kind"], two["key"], two["evidence"]) == ("toy", "two", "own")
    assert two["operation"]["operation_id"] == id_of(chain, "two")
    one, ugly = two["operation"]["inputs"]
    assert one["operation"]["operation_id"] == id_of(chain, "one")
    assert one["operation"]["inputs"] == []
    assert (ugly["evidence"], ugly["sha256"], ugly["operation"]) == ("unknown", None, None)


def test_it_walks_to_what_was_made_from_it(chain):
    found = chain("lineage", id_of(chain, "one"), "--json").json
    assert found["inputs"] == []
    draft, toy = found["outputs"]
    assert draft["consumers"] == []
    (two,) = toy["consumers"]
    assert (two["operation_id"], two["evidence"]) == (id_of(chain, "two"), "own")
    assert [one["operation_id"] for one in two["outputs"][1]["consumers"]] == [id_of(chain, "three")]


def test_a_person_sees_a_tree_that_says_what_is_not_proven(chain):
    lines = chain("lineage", id_of(chain, "two")).out.splitlines()
    assert lines[0].startswith(id_of(chain, "two") + "  ✓ completed")
    assert any("← toy one" in line and "own: it read this very content" in line for line in lines)
    assert any("← toy ugly  sha256 not known  unknown: nothing is proven" in line for line in lines)
    assert any("→ toy two" in line and "2 of 2" in line for line in lines)
    assert any(f"used by {id_of(chain, 'three')}" in line for line in lines)
    assert not any("1 of 2" in line for line in lines)
    consumer = next(at for at, line in enumerate(lines) if "used by" in line)
    assert lines[consumer + 1].index("→") > lines[consumer].index("used by"), "what that one made lies below it"


def test_a_file_is_what_has_its_content_else_what_has_its_name(chain):
    moved = chain.folder / "elsewhere"
    moved.write_bytes(b"toy two")
    found = chain("lineage", moved, "--json").json
    assert (found["operation_id"], found["file"]["same"]) == (id_of(chain, "two"), True)
    (chain.folder / "three.toy").write_bytes(b"changed")
    ran = chain("lineage", "three.toy")
    assert (ran.code, id_of(chain, "three") in ran.out) == (0, True)
    assert "its content is not what was published" in ran.out
    (chain.folder / "three.toy").unlink()
    assert "it is gone" in chain("lineage", "./three.toy").out


def test_what_nobody_published_is_not_found(chain):
    (chain.folder / "stranger").write_bytes(b"mine")
    assert chain("lineage", "stranger", "--json").code == 3
    assert chain("lineage", "nothing", "--json").json["error"]["code"] == "not_found"


def test_a_group_was_made_from_what_its_children_published(cli):
    assert cli("toy", "work", "one", "two", "--pieces", "1", "--publish", "toys").code == 0
    found = cli("lineage", "group", "--json").json
    assert sorted((one["key"], one["evidence"]) for one in found["inputs"]) == [("one", "child"), ("two", "child")]
    assert found["outputs"] == []
