"""What the command line shows: a run's live table, a comparison's progress, tables of results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedray.values import RoundRecord

if TYPE_CHECKING:
    from fedray.report.claims import Claim

console = Console()
errors = Console(stderr=True)

_ROWS_SHOWN = 12
_COLUMNS = ("round", "cohort", "loss", "metric", "epsilon", "up", "down", "time")


class RoundsTable:
    """The newest rounds of one run.

    Args:
        metric: the metric to show beside the loss.
        rounds: how many rounds there will be.
    """

    def __init__(self, metric: str, rounds: int) -> None:
        self._metric = metric
        self._rows: list[tuple[str, ...]] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("rounds", total=rounds)

    def add(self, record: RoundRecord) -> None:
        """Show one more round."""
        self._rows.append(_row(record, self._metric))
        if not console.is_terminal:
            self._print(self._rows[-1])
        self._progress.update(self._bar, completed=record.round)

    def __rich__(self) -> Group:
        return Group(self._table(self._rows[-_ROWS_SHOWN:]), self._progress)

    def _print(self, row: tuple[str, ...]) -> None:
        """A line a round, for pipes and logs."""
        if len(self._rows) == 1:
            self._print_line([self._metric if column == "metric" else column for column in _COLUMNS])
        self._print_line(row)

    def _print_line(self, cells: Sequence[str]) -> None:
        console.print("".join(cell.rjust(max(10, len(self._metric) + 2)) for cell in cells), highlight=False)

    def _table(self, rows: Sequence[tuple[str, ...]]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in _COLUMNS:
            table.add_column(self._metric if column == "metric" else column, justify="right")
        for row in rows:
            table.add_row(*row)
        return table


@contextmanager
def live(table: RoundsTable) -> Iterator[None]:
    """Keep the table on the screen while it grows."""
    if not console.is_terminal:
        yield
        return
    with Live(table, console=console, refresh_per_second=8):
        yield


def print_notes(notes: Sequence[str]) -> None:
    """How owners are run, for those who wonder."""
    for line in notes:
        console.print(Text(line, style="dim"))


class TrialsProgress:
    """How far a comparison is: trials done, and what each running one has reached.

    Args:
        n_trials: how many there will be; None where that is a secret.
        metric: the metric to show.
    """

    def __init__(self, n_trials: int | None, metric: str) -> None:
        self._metric = metric
        self._n_trials = n_trials
        self._done: set[str] = set()
        self._running: dict[str, str] = {}
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("trials", total=n_trials)

    def watch(self, trial: str, settings: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """Take in a trial's newest round; None ends it."""
        if result is not None:
            value = result.get(self._metric)
            shown = f"{self._metric} {value:.3f}" if value is not None else ""
            self._running[trial] = f"  {_settings(settings)}  round {result.get('round')}  {shown}"
            return
        self._done.add(trial)
        self._running.pop(trial, None)
        self._progress.update(self._bar, completed=len(self._done))
        if not console.is_terminal:
            seconds = time.monotonic() - self._started
            done = f"{len(self._done)}" if self._n_trials is None else f"{len(self._done)}/{self._n_trials}"
            line = f"  {done} trials, {seconds:.0f} s: {_settings(settings)}"
            console.print(line, soft_wrap=True)

    def __rich__(self) -> Group:
        return Group(self._progress, *self._running.values())


@contextmanager
def live_trials(progress: TrialsProgress) -> Iterator[None]:
    """Keep the comparison's progress on the screen."""
    if not console.is_terminal:
        yield
        return
    with Live(progress, console=console, refresh_per_second=4):
        yield


def table_of(rows: Sequence[Mapping[str, str]]) -> Table:
    """Rows of equal keys as a table; columns that hold a digit in every filled cell to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0] if rows else ():
        numeric = all(row[key][:1].isdigit() or row[key] in _EMPTY for row in rows)
        table.add_column(key, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table


_EMPTY = ("", "-", "–", "no DP")


def _row(record: RoundRecord, metric: str) -> tuple[str, ...]:
    asked = len(record.cohort)
    return (
        str(record.round),
        f"{record.n_updates}/{asked}",
        _number(record.evaluation.get("loss")),
        _number(record.evaluation.get(metric)),
        _epsilon(record),
        _bytes(record.bytes_up),
        _bytes(record.bytes_down),
        f"{record.seconds['total']:.2f} s",
    )


def _epsilon(record: RoundRecord) -> str:
    if record.epsilon is None:
        return "-"
    from fedray.report.numbers import epsilon

    return f"{epsilon(record.epsilon)} {record.accountant or ''}".rstrip()


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _settings(settings: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        if isinstance(value, Mapping):
            rest = [f"{key}={item}" for key, item in value.items() if key != "name"]
            return " ".join([str(value.get("name", "")), *rest]).strip()
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key}: {short(value)}" for key, value in settings.items())


_VERDICTS = {"holds": "green", "fails": "bold red", "note": "dim"}


def claims_table(claims: Sequence[Claim]) -> Table:
    """What an audit found."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "claim", "what the records show"):
        table.add_column(heading, overflow="fold")
    for claim in claims:
        table.add_row(Text(claim.verdict, style=_VERDICTS[claim.verdict]), claim.claim, Text(claim.found))
    return table
