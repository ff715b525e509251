"""Starting operations: each domain's commands, made from what the domain says of them, and ``run`` for any type."""

from __future__ import annotations

import inspect
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ktrdr_ops.core.errors import InvalidValue, KeyIsLive
from ktrdr_ops.interfaces.cli import times, words
from ktrdr_ops.interfaces.cli.frame import START, Context, command, group, parameter
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.domain import Command, Option
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.orchestration import How

IfRunning = Literal["wait", "attach", "skip"]

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "path": Path, "time": str}
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "bool": "true|false", "path": "PATH", "time": "TIME"}
_New = Annotated[bool, typer.Option("--new", help="Start afresh, also where an earlier one could be gone on with.")]
_IfRunning = Annotated[
    IfRunning | None,
    typer.Option(
        "--if-running", metavar="wait|attach|skip", help="What to do where it is running already (default: exit 8)."
    ),
]
Wait = Annotated[
    str | None,
    typer.Option(
        "--wait",
        metavar="DURATION",
        help="How long a training waits for a host that is busy or gone: 30s, 10m (several, unattended: 12h).",
    ),
]
_Detach = Annotated[bool, typer.Option("--detach", help="Run in the background; print the id and return.")]


def register(cli: typer.Typer) -> None:
    """Add ``run``, and a group for each installed domain."""
    from ktrdr_ops.app import installed_domains

    for domain in installed_domains():
        added = group(cli, domain.name, help=domain.help, panel=START)
        for found in domain.commands:
            _add(added, found)
    command(cli, "run", help="Any operation type, with its parameters", panel=START)(run)


def run(
    context: Context,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The operation type.")],
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="K=V", help="JSON where it is, else text.")
    ] = None,
    new: _New = False,
    if_running: _IfRunning = None,
    wait: Wait = None,
    detach: _Detach = False,
) -> int:
    """Start an operation of any installed type."""
    parameters = dict(_param(one) for one in param or ())
    return start(context, type, parameters, new=new, if_running=if_running, wait=wait, detach=detach)


def _param(text: str) -> tuple[str, Json]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidValue(
            f"--param {text[:80]!r} is not NAME=VALUE", hint="For example: --param mode=full --param n=3"
        )
    try:
        return name, json.loads(value)
    except RecursionError:
        raise InvalidValue(f"the parameter {name[:80]!r} is nested too deeply") from None
    except ValueError:
        return name, value


def _add(cli: typer.Typer, found: Command) -> None:
    own = [_parameter(option) for option in found.options]
    if found.operation_type is None:
        command(cli, found.name, help=found.help, parameters=own)(lambda context, **given: _look(context, found, given))
        return
    starting = list(inspect.signature(run, eval_str=True).parameters.values())[3:]
    body = command(cli, found.name, help=found.help, parameters=[*own, *starting])
    body(lambda context, **given: _start(context, found, given))


def _parameter(option: Option) -> inspect.Parameter:
    one: Any = _TYPES[option.type]
    if option.choices:
        one = operator.getitem(cast("Any", Literal), option.choices)
    kind: Any = list.__class_getitem__(one) if option.many else one
    name = option.name.upper().replace("_", "-")
    info: Any
    if option.positional:
        info = typer.Argument(help=option.help, metavar=name)
    else:
        spelled = "--" + option.name.replace("_", "-")
        flag = option.type == "bool" and not option.many
        if flag and option.default:
            spelled += f"/--no-{spelled[2:]}"
        metavar = None if flag else "|".join(option.choices) if option.choices else _METAVARS[option.type]
        info = typer.Option(spelled, help=option.help, metavar=metavar)
    if option.required:
        return parameter(option.name, kind, inspect.Parameter.empty, info)
    return parameter(option.name, kind | None if option.default in (None, ()) else kind, option.default, info)


def _given(values: Mapping[str, Any]) -> dict[str, Json]:
    """What was said, as JSON; what was not is left to the domain's defaults."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None and value not in ((), [])
    }


def _say_times(context: Context, found: Command, given: Mapping[str, Any]) -> None:
    """Local times are said in UTC. Raises InvalidValue where the clocks make one ambiguous."""
    for option in found.options:
        value = given.get(option.name)
        meant = times.local_moment(value) if option.type == "time" and isinstance(value, str) else None
        if meant is not None:
            context.say(f"{safe(option.name)} {safe(value)} is {meant.isoformat(timespec='seconds')} (UTC)")


def _look(context: Context, found: Command, given: Mapping[str, Any]) -> int:
    """A command of a domain that starts no operation."""
    from ktrdr_ops.core.domain import CommandContext

    look = found.run
    assert look is not None, f"{found.name} neither starts an operation nor runs"
    _say_times(context, found, given)
    result = context.run(lambda app: look(CommandContext(app, _given(given))))
    context.emit(result.document, result.text)
    return result.exit_code


def _start(context: Context, found: Command, given: dict[str, Any]) -> int:
    how = {name: given.pop(name) for name in ("new", "if_running", "wait", "detach")}
    values = _given(given)
    _say_times(context, found, values)
    operation_type = found.operation_type or ""
    if found.each is None:
        return start(context, operation_type, values, **how)
    several = values.pop(found.each, None)
    each = list(dict.fromkeys(several)) if isinstance(several, list) else [several]
    if len(each) == 1:
        return start(context, operation_type, {**values, found.each: each[0]}, **how)
    children = [{"type": operation_type, "parameters": {**values, found.each: one}} for one in each]
    return start(context, "group", {"children": children}, **how)


def start(
    context: Context,
    operation_type: str,
    parameters: Mapping[str, Json],
    *,
    new: bool = False,
    if_running: IfRunning | None = None,
    wait: str | None = None,
    detach: bool = False,
) -> int:
    """Start an operation, or go on with it, and see it to its end; gives the exit code. Raises what refuses it."""
    several = operation_type == "group"
    seconds = times.patience(wait, times.UNATTENDED_SECONDS if several else times.FOREGROUND_SECONDS)
    if detach:
        from ktrdr_ops.interfaces.cli.detaching import detached

        return detached(context)

    async def begin(app: AsyncApp) -> int:
        from ktrdr_ops.core.orchestration import How

        return await _begin(context, app, operation_type, parameters, How(fresh=new, wait=seconds), if_running)

    return context.run(begin)


async def _begin(
    context: Context,
    app: AsyncApp,
    operation_type: str,
    parameters: Mapping[str, Json],
    how: How,
    if_running: IfRunning | None,
) -> int:
    from ktrdr_ops.interfaces.cli import operating, watching
    from ktrdr_ops.interfaces.cli.documents import whole_document

    while True:
        ended = await operating.operate(
            context,
            app,
            lambda told: app.framework.run(operation_type, parameters, progress_callback=told, how=how),
        )
        if ended.ids or not isinstance(ended.error, KeyIsLive) or if_running is None:
            return await operating.told(context, app, ended)
        other = str(ended.error.details["operation_id"])
        context.say(safe(ended.error.message))
        if if_running == "skip":
            found = await whole_document(app, other)
            context.emit(found, f"{words.status_words(found)}  {safe(other)}")
            return 0
        if if_running == "attach":
            return await watching.attend(context, app, [other], tell=True)
        await watching.until_ended(app, [other])
