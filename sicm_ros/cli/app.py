# SPDX-License-Identifier: Apache-2.0
"""The command line: ``sicm COMMAND ...``. The commands are in the files beside this one.

Everything heavy is imported inside the command that needs it, so that help appears at once and the codec's commands run
without ROS. Bad input is one line ``error: ...`` on standard error and exit status 2; SICM_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from . import bag, codec, data, demo, evaluate, measure, train
from .options import help_alone

app = typer.Typer(
    name="sicm",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Split 3D object detection from stereo images: the vehicle sends a packet of a few kilobytes for each stereo "
    "pair, and a remote node finds the 3D boxes.\n\n"
    "[bold]1. See it work:[/bold] [cyan]sicm demo[/cyan] sends rendered pairs through both ROS 2 nodes and writes "
    "pictures to out/demo.\n\n"
    "[bold]2. Your own images:[/bold] [cyan]sicm encode[/cyan] makes a packet of a rectified pair, "
    "[cyan]sicm decode[/cyan] makes 3D boxes of the packet.\n\n"
    "[bold]3. ROS 2:[/bold] [cyan]sicm bag[/cyan] makes and plays rosbag2 files; README.md and docs/ros.md show how to "
    "start the nodes.\n\n"
    "[bold]sicm COMMAND --help[/bold] explains a command, with examples.",
)
for group in (demo, codec, data, train, evaluate, measure):
    app.add_typer(group.commands)
app.add_typer(bag.commands, name="bag")


INTERRUPTED = 128 + signal.SIGINT

# Typer hands on click's exceptions, whichever click it uses; what they have in common is the first below Exception.
_parents = typer.BadParameter.__mro__
_UsageError: type[Exception] = _parents[_parents.index(Exception) - 1]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        print(f"sicm {__version__}")
        raise typer.Exit()
    help_alone(context)


def _one_line(error: BaseException) -> str:
    if isinstance(error, _UsageError):
        text = error.format_message()  # type: ignore[attr-defined]
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, ModuleNotFoundError):
        text = f"this command needs the Python module {error.name}, which is not installed here"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the working directory does not exist any more: change to another one") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or 2 after one line on standard error about what was wrong with the input, or
    130 after Ctrl-C."""
    try:
        _check_working_folder()
        status = app(args=None if arguments is None else list(arguments), prog_name="sicm", standalone_mode=False)
        if status == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (_UsageError, ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("SICM_DEBUG") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
