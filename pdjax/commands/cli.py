"""Parses a command, runs it, and turns mistakes into one line. Nothing else.

Exit codes: 0 done, 1 failed, 2 bad input, 3 stopped and saved. An unexpected failure writes its
traceback to a file, which the line names.
"""

import _thread
import argparse
import contextlib
import dataclasses
import errno
import inspect
import json
import os
import sys
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import pdjax
from pdjax.base_policies import settings
from pdjax.base_policies.foreign import user_code
from pdjax.commands.table import COMMANDS, GROUPS, Command
from pdjax.config import files as configs
from pdjax.config import options as schema
from pdjax.config import schema as fields
from pdjax.config.options import ConfigError, Option
from pdjax.config.presets import PRESETS
from pdjax.devices import process_settings
from pdjax.sweep import spec
from pdjax.training import stopping
from pdjax_envs.names import suggest
from pdjax_envs.reading import InputError, short

_DESCRIPTION = "Refine a frozen robot policy online with a bounded residual policy, trained in JAX."
_CONVENTIONS = """\
`pdjax COMMAND --help` explains a command. Human-readable output goes to stderr; --json prints one
JSON object as the last line of stdout. A mistake ends in one line and changes nothing. An
unexpected failure also writes its traceback to a file, which the line names.

exit codes: 0 done, 1 failed, 2 bad input, 3 stopped on request and saved
"""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}  # no mistake of ours
NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # no file can have such a name
_WIDTH = 100  # characters in a line of help
_LONGEST = 300  # characters of a mistake's line


class _Parser(argparse.ArgumentParser):
    """Parses like argparse, with one-line mistakes; puts `more` help together only to show it."""

    def __init__(self, *args, more=None, **kwargs):
        kwargs |= {"formatter_class": _Formatter, "allow_abbrev": False}
        super().__init__(*args, **kwargs)
        self._more = more

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def format_help(self) -> str:
        return super().format_help() + (self._more() if self._more else "")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=_WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # no flag or path is broken


class _Version(argparse.Action):
    """Prints the version of the installed package, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"pdjax {pdjax.__version__}")
        parser.exit()


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="pdjax", usage="pdjax COMMAND ...", description=_DESCRIPTION, more=_commands_help
    )
    parser.add_argument("--version", action=_Version, help="Prints the version.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, cls in COMMANDS.items():
        text = f"{_fill(inspect.getdoc(cls) or '')}\n\nexample:\n  {cls.EXAMPLE}"
        command = commands.add_parser(
            name, prog=f"pdjax {name}", description=text, more=_KEYS_HELP.get(name)
        )
        for index, option in enumerate(schema.describe(cls)):
            _add(command, option, positional=_is_positional(cls, index, option))
        command.add_argument(
            "--json", action="store_true", help="Prints one JSON object as the last line of stdout."
        )
    return parser


def _is_positional(cls: type[Command], index: int, option: Option) -> bool:
    declared = getattr(cls, "POSITIONALS", None)
    if declared is None:
        return index == 0 and option.default is dataclasses.MISSING
    return index < declared


def _add(parser: argparse.ArgumentParser, option: Option, positional: bool) -> None:
    """Adds a flag that takes text; `schema.convert` checks the text."""
    required = option.default is dataclasses.MISSING
    facts = [option.expected()] if option.kind in (int, float) else []
    if not required and option.kind is not bool and option.default not in (None, (), ""):
        facts.append(f"default {option.default}")
    text = (option.doc + (f" ({', '.join(facts)})" if facts else "")).replace("%", "%%")
    if positional:
        word = _metavar(option.kind) if get_origin(option.kind) is Literal else option.name.upper()
        count: dict[str, Any] = {} if required else {"nargs": "?", "default": argparse.SUPPRESS}
        count |= {"nargs": "+"} if get_origin(option.kind) is tuple else {}
        parser.add_argument(option.name, metavar=word, help=text, **count)
        return
    if option.kind is bool:
        parser.add_argument(
            _flag(option),
            dest=option.name,
            action="store_true",
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    parser.add_argument(
        _flag(option),
        dest=option.name,
        required=required,
        default=argparse.SUPPRESS,
        action="append" if get_origin(option.kind) is tuple else "store",
        metavar=_metavar(option.kind),
        help=text,
    )


def _flag(option: Option) -> str:
    return "--" + option.name.replace("_", "-")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is tuple:
        return "KEY=VALUE"
    if get_origin(kind) in schema.UNIONS:  # or None
        return _metavar(get_args(kind)[0])
    return {int: "N", float: "X", str: "NAME"}.get(kind, "PATH")


def _fill(text: str, indent: str = "") -> str:
    """Returns paragraphs broken into lines of help, each line behind `indent`."""
    wrap = textwrap.TextWrapper(
        _WIDTH - 2, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return "\n\n".join(map(wrap.fill, text.split("\n\n")))


def _commands_help() -> str:
    """Returns all commands, each with the first sentence of its help, by what a user does."""
    lines = [""]
    indent = " " * (max(map(len, COMMANDS)) + 4)
    for title, commands in GROUPS.items():
        lines.append(f"{title}:")
        for name, cls in commands.items():
            summary = _fill((inspect.getdoc(cls) or "").split("\n\n")[0], indent)
            lines.append(f"  {name.ljust(len(indent) - 2)}{summary[len(indent) :]}")
        lines.append("")
    return "\n".join([*lines, _CONVENTIONS])


def _config_help() -> str:
    """Returns every key of a run's config, with type, default and meaning."""
    suite = [
        name.removeprefix("fast/").split("_")
        for name in configs.configs()
        if name.startswith("fast/")
    ]
    tasks, kinds = (", ".join(dict.fromkeys(pair[at] for pair in suite)) for at in (0, 1))
    lines = [
        f"\nconfigs that come with pdjax: {', '.join(configs.known_configs())}",
        f"(TASK: {tasks}; KIND: {kinds})",
        f"presets: {', '.join(PRESETS)}; `preset: NAME` in a file starts from one of them,"
        " or from a config that comes with pdjax",
        "config keys, in a YAML file or after --set (type, default = preset pd):",
    ]
    return "\n".join([*lines, *_explain_keys(fields.describe())]) + "\n"


def _imitation_help() -> str:
    """Returns every key of a base policy's training, and what each --policy changes."""
    lines = ["\nwhat each --policy changes:"]
    lines += [f"  {name}: {json.dumps(changes)}" for name, changes in settings.RECIPES.items()]
    lines.append("config keys after --set (type, default):")
    options = schema.describe(settings.ImitationConfig)
    return "\n".join([*lines, *_explain_keys(options)]) + "\n"


def _explain_keys(options: list[Option]) -> list[str]:
    lines = []
    for option in options:
        # JSON spells values as YAML reads them
        required = option.default is dataclasses.MISSING
        default = "required" if required else f"default {json.dumps(option.default)}"
        lines.append(f"  {option.name} ({option.expected()}, {default})")
        lines.append(_fill(option.doc, "      "))
    return lines


def _sweep_help() -> str:
    """Returns every key of a sweep's file, with an example."""
    ranges = [f"  {kind}: {what}" for kind, what in spec.KINDS.items()]
    lines = [
        "\nexample of a sweep's file:",
        textwrap.indent(spec.EXAMPLE, "  ").rstrip(),
        "ranges of a key in `space` (a bare list is a grid):",
        *ranges,
        "`members`: a number of seeds, or lists as in a run's config; one program trains them all.",
        "further keys (type, default):",
    ]
    return "\n".join([*lines, *_explain_keys(schema.describe(spec.Settings))]) + "\n"


_KEYS_HELP = {"train": _config_help, "imitate": _imitation_help, "sweep": _sweep_help}


def _parse(argv: list[str]) -> tuple[Command, bool]:
    """Returns a command with its values, and whether to print JSON.

    Raises:
      ConfigError: the arguments are not valid.
    """
    parser = _make_parser()
    found, unknown = parser.parse_known_args(_spread(argv))
    if found.command is None:
        parser.error(f"no command; choose one of: {', '.join(COMMANDS)}")
    cls = COMMANDS[found.command]
    options = {option.name: option for option in schema.describe(cls)}
    if unknown:
        flags = [*map(_flag, options.values()), "--json", "--help"]
        known = unknown[0] in flags
        hint = "write it after the command" if known else suggest(unknown[0], flags, "--help")
        raise ConfigError(f"{found.command} does not take {short(repr(unknown[0]))} here; {hint}")
    values = {}
    for index, (name, option) in enumerate(options.items()):
        if hasattr(found, name):
            source = name.upper() if _is_positional(cls, index, option) else _flag(option)
            values[name] = schema.convert(option, getattr(found, name), source)
    return cls(**values), found.json


def _spread(argv: list[str]) -> list[str]:
    """Turns `--set a=1 b=2 CONFIG` into `--set a=1 --set b=2 CONFIG`."""
    spread, after_set = [], False
    for argument in argv:
        after_set = argument == "--set" or (after_set and "=" in argument)
        if after_set and argument != "--set" and spread[-1] != "--set":
            spread.append("--set")
        spread.append(argument)
    return spread


def _explain(error: Exception) -> int:
    """Prints in one line what went wrong; returns the exit code."""
    is_name = isinstance(error, OSError) and error.errno in NAMES
    known = isinstance(error, InputError) or is_name  # what the user can correct
    code = 2 if known else 1
    text = short(str(error), _LONGEST - len("pdjax: "))  # its end says what to do
    if isinstance(error, OSError) and is_name:
        text = f"cannot use {short(str(error.filename))}: {error.strerror}; choose another name"
    if isinstance(error, stopping.Stopped):
        code, text = stopping.STOPPED, f"{text}; {stopping.CONTINUES}"
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({short(str(error.filename))})" if error.filename else ""
        text = f"{error.strerror}{where}; what was saved before is kept; mend that and try again"
    elif code == 1 and type(error).__name__ not in ("RenderError", "NotSavedError"):
        text = f"failed with {type(error).__name__}: {short(text, 200)}; {_keep_traceback()}"
    print(f"pdjax: {text}", file=sys.stderr)
    return code


def _keep_traceback() -> str:
    """Writes the current traceback to a file; returns words that say where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pdjax-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
    except OSError:
        traceback.print_exc()
        return "traceback above"
    return f"traceback in {Path(file.name)}"


def _run(command: Command) -> dict[str, Any]:
    """Runs a command; code of the user's that fails in it becomes the user's mistake."""
    try:
        return command.run()
    except (Exception, SystemExit) as error:
        found = user_code.cause(error)
        if found is error:
            raise
        raise found from None


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        command, as_json = _parse(sys.argv[1:] if argv is None else argv)
        with stopping.listening(getattr(command, "is_resumable", False)):
            process_settings.prepare()
            from pdjax_envs.workers import closing_pools  # brings NumPy, which help does without

            with contextlib.redirect_stdout(sys.stderr), closing_pools():
                result = _run(command)
        if as_json:
            from pdjax.devices import processes
            from pdjax.output import terminal

            if processes.is_writer():
                terminal.emit_json(result)
        return int(result.get("passed") is False)
    except KeyboardInterrupt:
        print("pdjax: interrupted", file=sys.stderr)
        return 1
    except InputError as error:
        return _explain(error)
    except Exception as error:
        return _explain(process_settings.missing_devices() or error)


def _unraisable(event: Any) -> None:
    """Handles an exception that was raised where nothing can catch it, such as in a destructor.

    Raises an interruption again, which may hit JAX's garbage collection, once this hook has
    returned. Drops what asyncio says about TensorStore after a damaged checkpoint, which pdjax has
    reported itself. Python prints everything else.
    """
    if event.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()
    elif str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def program() -> NoReturn:
    """Runs the command that the process was started with, and exits with its code."""
    from pdjax.output import terminal

    sys.unraisablehook = _unraisable
    terminal.forgive()
    try:
        code = main()
    except SystemExit as end:  # --help and --version
        code = end.code
    terminal.flush()
    if code in (1, stopping.STOPPED):
        # An interrupted computation still calls back into Python, which must not be torn down.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
