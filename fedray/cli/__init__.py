"""The command line, ``fedray``: what it raises becomes a message and an exit code.

Exit codes: 0 done; 1 an unexpected error, or a promise that an audit found broken; 2 wrong usage or configuration;
3 data; 4 model; 5 resources; 6 run directory; 7 records; 8 a run that could not go on; 130 interrupted.
"""

from __future__ import annotations

import sys

from fedray.cli.app import app
from fedray.cli.screen import errors
from fedray.errors import FedrayError

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C."""


def main() -> None:
    """Run the command line; every ``FedrayError`` becomes one message and its exit code, never a traceback."""
    try:
        app()
    except FedrayError as error:
        errors.print(f"[bold red]error:[/] {_escaped(error.found)}", highlight=False)
        errors.print(f"  [dim]expected:[/] {_escaped(error.expected)}", highlight=False)
        errors.print(f"  [dim]to do:[/]    {_escaped(error.remedy)}", highlight=False)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            errors.print("what was recorded is kept; a run in rounds goes on by --resume, a vertical one starts anew")
        raise


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
