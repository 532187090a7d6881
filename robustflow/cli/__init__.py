"""The command line: `robustflow <command>`.

Every module of this package whose name has no leading underscore is a command. It defines

    add_parser(subparsers) -> None      its argparse parser, under its own name
    run(args) -> int                    what it does; the exit code

and imports packages of its extra (which is named like the command) inside `run`. Only the requested
command is imported.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from robustflow import __version__
from robustflow._extras import explain
from robustflow._files import UnwritablePath
from robustflow.cli._output import READER_LEFT, reader_left
from robustflow.cli._stopping import exit_code, sigterm_interrupts, what_is_left


def commands() -> list[str]:
    """The names of the commands."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The command's exit code; 2 where its extra is not installed or a file cannot be written,
        130 or 143 if Ctrl-C or SIGTERM stopped it, 141 if the reader of its output closed the pipe.
    """
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        return READER_LEFT


def _main(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="robustflow",
        description="Fused, robust coupling transforms for conditional normalizing flows.",
    )
    parser.add_argument("--version", action="version", version=f"robustflow {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    named = [name for name in commands() if name in argv[:1]]
    modules: dict[str, ModuleType] = {}
    for name in named or commands():  # all of them for --help and for a name that is none
        modules[name] = importlib.import_module(f"{__name__}.{name}")
        modules[name].add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        with sigterm_interrupts():
            code: int = modules[args.command].run(args)
    except KeyboardInterrupt as interrupt:
        print(f"robustflow {args.command}: stopped; {what_is_left()}.", file=sys.stderr)
        return exit_code(interrupt)
    except UnwritablePath as error:
        print(f"robustflow {args.command}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        sentence = explain(f"robustflow {args.command}", error, args.command)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2
    return code
