"""``fedray ledger``: an owner opens its ledger, reads what it has spent, and checks that nobody changed it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from fedray.cli.screen import console, table_of
from fedray.errors import RecordsError

if TYPE_CHECKING:
    from fedray.privacy.events import Unit
    from fedray.privacy.ledger import Ledger

app = typer.Typer(
    help="A data owner's record of what it has released, over all runs, and its budget.", no_args_is_help=True
)

Owner = Annotated[str | None, typer.Argument(help="The owner's name; all owners when left out.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--file", metavar="PATH", help="A ledger's file, such as one in a run's directory, instead of the owner's own."
    ),
]

UNITS: tuple[Unit, ...] = ("example", "owner")


@app.command("open")
def open_(
    owner: Annotated[str, typer.Argument(help="The owner's name, as in the data.")],
    epsilon: Annotated[float, typer.Option(help="The most that may be spent, over all runs from now and before.")],
    delta: Annotated[float, typer.Option(help="Failure probability that the budget refers to.")],
    unit: Annotated[
        Literal["example", "owner"],
        typer.Option(help="What is protected: each training row, or all that the owner has."),
    ] = "example",
) -> None:
    """Open an owner's ledger on this machine, or set a new budget in it, and print where it is.

    From then on every run that this owner takes part in here is charged to it, and refused beyond the budget.
    """
    from fedray.privacy.ledger import Ledger
    from fedray.privacy.ledger_file import LedgerFile, ledger_path

    path = ledger_path(owner)
    Ledger(LedgerFile(path), owner).set_budget(unit, epsilon, delta)
    print(path)


@app.command()
def show(
    owner: Owner = None,
    file: File = None,
    delta: Annotated[float, typer.Option(help="Where no budget names one: at which epsilon is computed.")] = 1e-5,
) -> None:
    """Show what an owner has spent, run by run and in all; a line for each owner where none is named."""
    if not 0 < delta < 1:
        raise typer.BadParameter("delta lies between 0 and 1")
    ledgers = _ledgers(owner, file)
    if owner is None:
        if not ledgers:
            console.print("no owner has opened a ledger on this machine: fedray ledger open OWNER", markup=False)
        for path, of_file in ledgers.items():
            console.print(Text(str(path), style="bold"), soft_wrap=True)
            console.print(table_of([row for ledger in of_file for row in _totals(ledger, delta)]))
        return
    ((path, (ledger,)),) = ledgers.items()
    console.print(table_of(_runs(ledger, delta)))
    console.print()
    console.print(table_of(_totals(ledger, delta)))
    console.print(Text(f"\nledger {path}\nhead   {ledger.head}"), soft_wrap=True)


@app.command()
def verify(
    owner: Owner = None,
    file: File = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="A head that was noted earlier: shows if entries were taken away since."),
    ] = None,
) -> None:
    """Check that no entry was changed, and print the head of each ledger.

    Exit code 0 when all is well, 3 when a ledger is corrupt, 7 when there is none.
    """
    from fedray.privacy.ledger_file import verify as check

    if head is not None and owner is None and file is None:
        raise typer.BadParameter("--head belongs to one ledger: name an OWNER or a --file")
    for path in _paths(owner, file):
        found = check(path, head.strip().lower() if head else None)
        torn = "; a crash has left the beginning of one more, which was not acted upon" if found.is_torn else ""
        console.print(Text(f"{path}: {found.n_entries} entries{torn}"), soft_wrap=True)
        print(found.head)


def _paths(owner: str | None, file: Path | None) -> list[Path]:
    from fedray.privacy.ledger_file import ledger_folder, ledger_path

    if file is None and owner is None:
        return sorted(ledger_folder().glob("*.jsonl"))
    return [file or ledger_path(str(owner))]


def _ledgers(owner: str | None, file: Path | None) -> dict[Path, list[Ledger]]:
    """The ledgers in each file: the owner's, or those of all owners."""
    from fedray.privacy.ledger import Ledger
    from fedray.privacy.ledger_file import LedgerFile

    found = {}
    for path in _paths(owner, file):
        if not path.is_file():
            raise _missing(owner, path)
        ledger_file = LedgerFile(path)
        names = ledger_file.owners if owner is None else [owner]
        if not set(names) <= set(ledger_file.owners):
            raise _missing(owner, path)
        found[path] = [Ledger(ledger_file, name) for name in names]
    return found


def _missing(owner: str | None, path: Path) -> RecordsError:
    return RecordsError(
        f"no ledger {f'of {owner!r} ' if owner else ''}at {path}",
        "a ledger that was opened",
        f"check the name, or open one: fedray ledger open {owner or 'OWNER'} --epsilon 8 --delta 1e-5",
    )


def _runs(ledger: Ledger, delta: float) -> list[dict[str, str]]:
    """A row for each run and unit."""
    releases, rows = ledger.releases(), []
    for run, unit in dict.fromkeys((release.run, release.unit) for release in releases):
        own = [release for release in releases if (release.run, release.unit) == (run, unit)]
        rows.append(
            {
                "run": run,
                "experiment": own[0].experiment,
                "unit": unit,
                "releases": str(sum(release.count for release in own)),
                "epsilon": _epsilon(ledger, unit, delta, run),
            }
        )
    return rows


def _totals(ledger: Ledger, delta: float) -> list[dict[str, str]]:
    """A row for each unit that was charged or has a budget."""
    budgets = ledger.budgets
    charged = {release.unit for release in ledger.releases()}
    return [
        {
            "owner": ledger.owner,
            "unit": unit,
            "spent": _epsilon(ledger, unit, delta),
            "budget": f"{budgets[unit].epsilon:.4g}" if unit in budgets else "-",
            "delta": f"{budgets[unit].delta if unit in budgets else delta:g}",
        }
        for unit in UNITS
        if unit in budgets or unit in charged
    ]


def _epsilon(ledger: Ledger, unit: Unit, delta: float, run: str | None = None) -> str:
    budget = ledger.budgets.get(unit)
    epsilon = ledger.spent(unit, budget.delta if budget else delta, run).epsilon
    return "unbounded" if math.isinf(epsilon) else f"{epsilon:.4f}"
