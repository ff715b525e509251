"""What is wrong with the parameters of an operation, in words and not in those of the library that checked them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_MOST = 3
_WANTED = {
    "greater_than_equal": "it is at least {ge:,}",
    "less_than_equal": "it is at most {le:,}",
    "string_type": "it is text",
    "int_type": "it is a whole number",
    "bool_type": "it is true or false",
}


def what_is_wrong(error: ValidationError) -> str:
    """``epochs is -3; it is at least 1``: the first few, each with its name, what was given and what may be."""
    return "; ".join(_said(each) for each in error.errors()[:_MOST])[:400]


def _said(wrong: ErrorDetails) -> str:
    name = ".".join(map(str, wrong["loc"]))[:80]
    if wrong["type"] == "missing":
        return f"{name} is missing"
    if wrong["type"] == "extra_forbidden":
        return f"there is no parameter {name!r}"
    wanted = _WANTED.get(wrong["type"])
    said = wrong["msg"] if wanted is None else wanted.format(**wrong.get("ctx", {}))
    return f"{name} is {repr(wrong['input'])[:40]}; {said}"
