"""``fedray cluster identify``: this machine's administrator says whose machine it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedray.cli.screen import errors


def identify(
    owners: Annotated[
        list[str], typer.Argument(help='Names as in the data, or "key holder" for that party.', metavar="OWNER...")
    ],
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="PATH", help="Another file than $FEDRAY_NODE or /etc/fedray/owner.json."),
    ] = None,
) -> None:
    """Name the owners whose machine this is, besides those that it has already; prints all of them.

    Run it as root on the machine itself. An owner that is pinned runs nowhere else, whatever labels a node claims.
    """
    from fedray.node_identity import identity_path, write_identity

    path = file or identity_path()
    named = write_identity(owners, path)
    errors.print(f"identity file {path}", highlight=False, markup=False, soft_wrap=True)
    for owner in sorted(named):
        print(owner)
