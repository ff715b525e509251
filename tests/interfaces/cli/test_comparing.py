"""compare: only what differs between operations, and their curves on one scale."""

from __future__ import annotations

import json

import pytest

from ktrdr_ops.interfaces.cli.comparing import _cell
from ktrdr_ops.interfaces.cli.sparkline import curves, sparkline
from tests.interfaces.cli.conftest import Cli


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three operations that differ in what they were asked, and a fourth that is like the first."""
    made = Cli(tmp_path_factory.mktemp("three"))
    assert made("toy", "work", "one", "two", "--rate", "0.5", "--pieces", "4").code == 0
    assert made("toy", "work", "three", "--rate", "0.8", "--pieces", "8").code == 0
    assert made("toy", "work", "one", "--rate", "0.5", "--pieces", "4", "--new").code == 0
    return made


def ids(cli, name):
    rows = cli.rows("SELECT operation_id FROM operations WHERE key = ? ORDER BY first_position", f"toy_work:{name}")
    return [row[0] for row in rows]


def test_only_what_differs_is_shown_and_what_is_equal_is_counted(three):
    one, other = ids(three, "one")[0], ids(three, "three")[0]
    found = three("compare", one, other, "--json").json
    first, second = found["operations"]
    assert first["parameters"] == {"name": "one", "pieces": 4, "rate": 0.5}
    assert second["parameters"] == {"name": "three", "pieces": 8, "rate": 0.8}
    assert first["result"] == {"name": "one", "pieces": 4, "done_now": 4}
    asked = three.rows(
        "SELECT json_extract(CAST(payload AS TEXT), '$.parameters') FROM events WHERE type = 'submitted'"
    )
    assert found["equal"] == {"parameters": len(json.loads(asked[1][0])) - 3, "result": 0, "metrics": 1}
    assert set(first["metrics"]) == {"left"}, "what never moved is left out"
    assert first["metrics"]["left"]["values"] == [0.5, 0.25, 0.125, 0.0625]
    assert (first["metrics"]["left"]["final"], first["metrics"]["left"]["highest"]) == (0.0625, 0.5)
    assert first["metrics"]["left"]["attempts"] == [1, 1, 1, 1]
    assert len(second["metrics"]["left"]["positions"]) == 8


def test_operations_that_are_alike_differ_in_nothing(three):
    ran = three("compare", *ids(three, "one"))
    assert "nothing differs" in ran.out
    assert ran.out.rstrip().endswith("parameters, 3 result values, 2 curves")


def test_a_long_value_is_cut_in_its_middle():
    assert _cell({"path": "/data/" + "x" * 60 + "/1d.parquet"}, "path") == "/data/xxxxxxxxx…xxx/1d.parquet"
    assert _cell({"path": "x" * 30}, "path") == "x" * 30


def test_curves_stand_side_by_side_on_one_scale(three):
    ran = three("compare", ids(three, "one")[0], ids(three, "three")[0])
    rows = [line.split() for line in ran.out.partition("\nleft")[2].splitlines()]
    short, long = (next(row[1] for row in rows if row and id_.endswith(row[0])) for id_ in first_and_third(three))
    assert (len(short), len(long)) == (4, 8)
    assert (short[0], long[0]) == ("▅", "█")


def first_and_third(cli):
    return ids(cli, "one")[0], ids(cli, "three")[0]


def test_they_are_sorted_by_what_differs(three):
    parent = three.rows("SELECT operation_id FROM operations WHERE operation_type = 'group'")[0][0]
    refused = three("compare", "--parent", parent, "--sort", "name", "--json")
    assert (refused.code, refused.json["error"]["hint"]) == (2, "One of: name")
    falling = three("compare", *ids(three, "one"), *ids(three, "three"), "--sort", "-left", "--json").json
    assert [one["parameters"]["name"] for one in falling["operations"]] == ["three", "one", "one"]


def test_many_operations_are_lines_and_a_terminal_without_utf_8_gets_ascii(three):
    names = [*ids(three, "one"), *ids(three, "three"), *ids(three, "two"), "group"]
    many = three("compare", *names, PYTHONIOENCODING="ascii")
    assert "pieces" in many.out.splitlines()[0]
    assert many.out.isascii()
    assert "#" in many.out


@pytest.mark.parametrize(("names", "code"), [((), 2), (("three",), 2), (("nothing", "more"), 3)])
def test_one_operation_is_compared_with_nothing(three, names, code):
    given = ids(three, "three") if names == ("three",) else names
    assert three("compare", *given, "--json").code == code


def test_a_sparkline_has_a_sign_a_value_and_the_mean_of_some_where_there_is_no_room():
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([3, 3, 3]) == "▁▁▁"
    assert sparkline([0.0, 1.0], low=0.0, high=2.0) == "▁▅"
    assert sparkline(list(range(100)), width=4) == "▂▄▅▇"
    assert sparkline([]) == ""


def test_a_list_of_two_to_64_numbers_is_a_curve():
    assert curves({"losses": [4, 3, 1], "name": "x", "one": [1], "words": ["a", "b"], "bools": [True, False]}) == (
        "losses █▆▁ 1"
    )
    assert curves({"many": [1.0] * 65}) == ""
