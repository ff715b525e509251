"""The frame of every command: global options before and after it, one context, output, errors, exit codes.

A command is a function that takes the context and its own options and gives an exit code (None is 0):

    @command(cli, "note", help="Write something down", panel=ACT)
    def note(context: Context, operation: Annotated[str, typer.Argument()], text: Annotated[str, typer.Argument()]):
        context.emit(context.run(lambda app: app.note(operation, text)), "noted")

What it raises becomes the one error document, or a sign and a sentence, and the exit code of the error.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ktrdr_ops import __version__
from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.interfaces.cli import logs
from ktrdr_ops.interfaces.cli.screen import Color, Screen, paint, safe, silence_stdout
from ktrdr_ops.interfaces.cli.values import plainly

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.settings import Settings

T = TypeVar("T")

START, LOOK, ACT, CARE = "Start", "Look", "Stop and go on", "Care"
BROKEN_PIPE = 141
USAGE = 2

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Context:
    """What the global options say, and everything a command prints through. ``arguments``: the whole command line."""

    journal: str | None = None
    sandbox: bool = False
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_progress: bool = False
    color: Color = "auto"
    log_file: Path | None = None
    arguments: tuple[str, ...] = ()

    @cached_property
    def settings(self) -> Settings:
        """The settings, these flags first. Raises InvalidValue."""
        from ktrdr_ops.settings import load_settings

        return load_settings({"journal": self.journal, "sandbox": self.sandbox or None})

    @cached_property
    def out(self) -> Screen:
        """stdout: the result."""
        return Screen(sys.stdout, self.color)

    @cached_property
    def err(self) -> Screen:
        """stderr: progress, hints, errors."""
        return Screen(sys.stderr, self.color)

    @property
    def live(self) -> bool:
        """Whether a region of the terminal may be drawn again and again."""
        wanted = not (self.no_progress or self.json or self.quiet)
        return wanted and self.err.terminal and os.environ.get("TERM") != "dumb"

    def emit(self, document: Json, text: str) -> None:
        """The result: the document with --json, else the text. Foreign words in the text must be ``safe``."""
        if self.json:
            self.out.write_json(self._hinted(document))
        elif text:
            self.out.write(text)

    def emit_line(self, document: Json, text: str) -> None:
        """One of many results: a line of JSON, or of text."""
        if self.json:
            self.out.write_json(document, lines=True)
        else:
            self.out.write(text)

    def say(self, text: str) -> None:
        """A hint or progress, for people: on stderr, and not with -q."""
        if not self.quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """On stderr, whatever was asked. Nobody reading it is no error."""
        with suppress(OSError):
            self.err.write(text)

    def fail(self, error: KtrdrOpsError) -> int:
        """Say what went wrong; gives the exit code."""
        self.report(error.document())
        return error.exit_code

    def report(self, error: dict[str, Json]) -> None:
        """An error: as the one document with --json, else a sign, a sentence and (not with -q) the hint."""
        if self.json:
            self.out.write_json(self._hinted({"error": error}))
            return
        lines = [f"{paint('✗', 'bad')} {safe(error['message'], 4000)}"]
        if error.get("hint") and not self.quiet:
            lines += [f"  {safe(line)}" for line in self.with_flags(str(error["hint"])).splitlines()]
        self.complain("\n".join(lines))

    def _hinted(self, document: Json) -> Json:
        """The document; the hints of its errors name the same journal."""
        if isinstance(document, list):
            return [self._hinted(one) for one in document]
        if not isinstance(document, dict):
            return document
        said = dict(document)
        for name in ("operation", "operations", "children"):
            if name in said:
                said[name] = self._hinted(said[name])
        error = said.get("error")
        if isinstance(error, dict) and error.get("hint"):
            said["error"] = {**error, "hint": self.with_flags(str(error["hint"]))}
        return said

    def command(self, *words: str) -> str:
        """The command line to type, with the same journal."""
        flags = ["--sandbox"] if self.sandbox else []
        if self.journal is not None:
            flags += ["--journal", self.journal]
        return shlex.join(["ktrdr-ops", *flags, *words])

    def with_flags(self, hint: str) -> str:
        """A hint whose commands name the same journal."""
        return hint.replace("ktrdr-ops ", self.command() + " ")

    def run(self, function: Callable[[AsyncApp], Awaitable[T]], *, readonly: bool = False) -> T:
        """What an async function of the open application gives. Raises what it raises, and JournalError."""
        from ktrdr_ops.app import open_app_async

        async def opened() -> T:
            async with open_app_async(settings=self.settings, readonly=readonly) as app:
                return await function(app)

        return asyncio.run(opened())


def parameter(name: str, kind: Any, default: Any, info: Any) -> inspect.Parameter:
    """A parameter made at run time; ``info`` is typer's Option or Argument."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _globals(*, hidden: bool) -> list[inspect.Parameter]:
    """The global options; their Python names begin with ``global_`` so that no option of a domain meets them."""

    def flag(name: str, *spelled: str, help: str) -> inspect.Parameter:
        return parameter(f"global_{name}", bool, False, typer.Option(*spelled, help=help, hidden=hidden))

    def value(name: str, kind: Any, *spelled: str, help: str, metavar: str) -> inspect.Parameter:
        info = typer.Option(*spelled, help=help, hidden=hidden, metavar=metavar)
        return parameter(f"global_{name}", kind, None, info)

    return [
        value("journal", str | None, "--journal", help="The journal's file.", metavar="PATH"),
        flag("sandbox", "--sandbox", help="Embedded hosts, with a journal and data of their own."),
        flag("json", "--json", help="One JSON document on stdout; errors too."),
        flag("quiet", "--quiet", "-q", help="No progress and no hints."),
        parameter(
            "global_verbose",
            int,
            0,
            typer.Option(
                "--verbose", "-v", count=True, help="More words; -vv for all.", hidden=hidden, show_default=False
            ),
        ),
        flag("no_progress", "--no-progress", help="No live region: a line now and then."),
        value("color", Color | None, "--color", help="Colours (auto: at a terminal).", metavar="auto|always|never"),
        value("log_file", Path | None, "--log-file", help="Structured lines to a file.", metavar="FILE"),
    ]


def _merged(before: Context | None, values: dict[str, Any]) -> Context:
    """What was said before the command, and after it; the later word counts."""
    context = before or Context()
    names = [field.name for field in fields(Context) if field.name != "arguments"]
    said = {name: values.pop(f"global_{name}") for name in names}
    verbose = context.verbose + said.pop("verbose")
    return replace(context, verbose=verbose, **{name: value for name, value in said.items() if value})


def _typed(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """The function as typer reads it: with these parameters, after its context."""
    first = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = inspect.Signature([first, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters)])
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return function


def command(
    cli: typer.Typer,
    name: str,
    *,
    help: str,
    panel: str | None = None,
    parameters: Sequence[inspect.Parameter] | None = None,
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add a command. Its options are the parameters of the body behind the context, or the given ``parameters``."""

    def decorate(body: Callable[..., int | None]) -> Callable[..., int | None]:
        own = parameters
        if own is None:
            own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]

        def called(ctx: typer.Context, **values: Any) -> None:
            context = _merged(ctx.obj, values)
            raise typer.Exit(guarded(context, lambda: body(context, **values)))

        epilog = "Global options go here too: see ktrdr-ops --help"
        cli.command(name, cls=Leaf, help=help, rich_help_panel=panel, epilog=epilog)(
            _typed(called, [*own, *_globals(hidden=True)])
        )
        return body

    return decorate


def group(cli: typer.Typer, name: str, *, help: str, panel: str | None = None) -> typer.Typer:
    """Add a group of commands; gives what its commands are added to."""
    added = typer.Typer(
        cls=Sections, help=help, no_args_is_help=True, rich_markup_mode=None, callback=_remember(hidden=True)
    )
    cli.add_typer(added, name=name, rich_help_panel=panel)
    return added


def _remember(*, hidden: bool, more: Sequence[inspect.Parameter] = ()) -> Callable[..., None]:
    def remember(ctx: typer.Context, **values: Any) -> None:
        ctx.obj = _merged(ctx.obj, values)

    return _typed(remember, [*_globals(hidden=hidden), *more])


def _version() -> inspect.Parameter:
    def tell(wanted: bool) -> None:
        if wanted:
            typer.echo(f"ktrdr-ops {__version__}")
            raise typer.Exit

    return parameter(
        "version", bool, False, typer.Option("--version", help="Which release this is.", is_eager=True, callback=tell)
    )


class Leaf(TyperCommand):
    """A command whose values are made plainly."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and arguments."""
        return plainly(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; where a list of values and one behind it share what was typed, the one behind is missing."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
            missing: Any = error.param
            if missing is None or missing.nargs != -1 or missing.name == arguments[-1].name:
                raise
            if not self.make_parser(ctx).parse_args(args=given)[0].get(arguments[-1].name):
                raise
            error.param = arguments[-1]
            raise


class Sections(TyperGroup):
    """A group of commands; its help has them under their headings."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options."""
        return plainly(super().get_params(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The visible commands by panel, in the order of their registering."""
        panels: dict[str, list[tuple[str, str]]] = {}
        width = formatter.width - 6 - max(map(len, self.commands), default=0)
        for name, found in self.commands.items():
            if not found.hidden:
                panel = getattr(found, "rich_help_panel", None)
                heading = panel if isinstance(panel, str) else "Commands"
                panels.setdefault(heading, []).append((name, found.get_short_help_str(width)))
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def root(help: str) -> typer.Typer:
    """The command line itself, without commands yet."""
    return typer.Typer(
        cls=Sections,
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        callback=_remember(hidden=False, more=[_version()]),
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def guarded(context: Context, body: Callable[[], int | None]) -> int:
    """Run a command's body; gives its exit code, whatever it raises."""
    try:
        logs.configure(context.err, verbose=context.verbose, quiet=context.quiet, log_file=context.log_file)
        return body() or 0
    except KtrdrOpsError as error:
        _log.info("failed: %s", error, exc_info=True)
        return context.fail(error)
    except BrokenPipeError:
        silence_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except (typer.Exit, typer.TyperException):
        raise
    except Exception as error:  # whatever it is, a script gets a document and a person a sentence, not a traceback
        _log.info("unexpected", exc_info=True)
        context.report(
            {
                "code": "unexpected",
                "message": f"{type(error).__name__}: {error}",
                "hint": "This is a defect. Run it again with -v to see where it comes from.",
            }
        )
        return 1


def usage_error(error: typer.TyperException, arguments: Sequence[str]) -> int:
    """What was typed cannot be meant: said like any other error; gives the exit code."""
    ours = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    context = Context(json="--json" in ours, color="never" if "--color=never" in ours else "auto")
    where = getattr(getattr(error, "ctx", None), "command_path", "ktrdr-ops")
    if type(error).__name__ == "NoArgsIsHelpError" and not context.json:
        context.complain(error.format_message())
        return USAGE
    message = "no command was given" if type(error).__name__ == "NoArgsIsHelpError" else error.format_message()
    hint = f"See: {where} --help"
    context.report({"code": "usage", "message": " ".join(message.split()), "hint": hint})
    return USAGE
