"""From what was typed to values.

typer makes a pydantic adapter for each parameter of a command that is called, even where nothing was given for it:
pydantic alone costs as much as all else that ``list`` does. The few kinds of values that commands take are made here
instead, and refused in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

_KINDS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    Path: (Path, "a path"),
}
_BOOLS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


class Plain:
    """Makes the values of one parameter; stands where typer keeps its own maker."""

    def __init__(self, annotation: Any) -> None:
        self._many = get_origin(annotation) is list
        self._one = get_args(annotation)[0] if self._many else annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value, or a list of them. Raises BadParameter."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        try:
            return [self._value(one) for one in value] if many else self._value(value)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=param) from None

    def _value(self, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if get_origin(self._one) is Literal:
            choices = [str(choice) for choice in get_args(self._one)]
            found = [choice for choice in choices if choice.casefold() == given.casefold()]
            if not found:
                raise ValueError(f"{given!r} is none of {', '.join(choices)}")
            return found[0]
        if self._one is bool:
            if given.casefold() not in _BOOLS:
                raise ValueError(f"{given!r} is neither true nor false")
            return _BOOLS[given.casefold()]
        make, what = _KINDS[self._one]
        try:
            return make(given)
        except ValueError:
            raise ValueError(f"{given!r} is not {what}") from None


def plainly(params: Iterable[Any]) -> list[Any]:
    """The parameters, each with its value made by ``Plain``."""
    made = list(params)
    for param in made:
        descriptor = getattr(param, "type_descriptor", None)
        if descriptor is not None:
            param._runtime_param = Plain(descriptor.annotation)
    return made
