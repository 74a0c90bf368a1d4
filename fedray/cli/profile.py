"""``fedray run --profile``: where a run's time went, on the screen and in files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from rich.table import Table

from fedray.cli.screen import console
from fedray.records import RunRecords
from fedray.report import numbers
from fedray.report.profile import Profile, Stretch, as_json, profile
from fedray.run_directory import TIMELINE
from fedray.running import Run

PROFILE = "profile.json"
_REST_OF_PROCESSES = "rest: idle while the server works, and the protection's messages"
_REST_OF_ACTORS = "rest: serialise, seal, evaluate, wait; not told apart where each owner is an actor"


def show_profile(run: Run, records: RunRecords, *, in_process: bool) -> None:
    """Print where the time of a run that has ended went; leave the same figures in its directory."""
    processes = 1 if in_process else _pools(run.notes)
    found = profile(records.rounds[-len(run.rounds_s) :], run.rounds_s, run.records_s, processes)
    (run.directory / PROFILE).write_text(json.dumps(as_json(found), indent=2) + "\n")
    for title, stretches in (("Server, wall time of a round", found.server), (_owners(found), found.owners)):
        console.print(f"\n{title}", style="bold", highlight=False)
        console.print(_table(stretches))
    console.print(_REST_OF_ACTORS if found.is_derived else _REST_OF_PROCESSES, style="dim", highlight=False)
    console.print()
    for line in _lines(found, run):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _pools(notes: Sequence[str]) -> int | None:
    """How many processes owners share; None where each has its own."""
    found = (re.fullmatch(r"pools: (\d+)", line) for line in notes)
    return next((int(match[1]) for match in found if match), None)


def _owners(found: Profile) -> str:
    if found.is_derived:
        return f"Owners, an actor each: {found.processes:g} that trained, all together"
    return f"Owners' processes, all {found.processes:g} together" if found.processes > 1 else "Owners, in one process"


def _table(stretches: Sequence[Stretch]) -> Table:
    """A row a part, the whole last: milliseconds a round, and its share."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for one in stretches:
        rounds = "" if one.title == "first round" else f" ({one.n_rounds})"
        table.add_column(f"{one.title}{rounds}\nms", justify="right")
        table.add_column("\nshare", justify="right")
    longest_first = sorted(stretches, key=lambda one: len(one.seconds), reverse=True)
    for part in dict.fromkeys(part for one in longest_first for part in one.seconds):
        table.add_row(part, *(cell for one in stretches for cell in _cells(one, part)))
    table.add_row("all", *(cell for one in stretches for cell in (_milliseconds(one.total), "")), style="bold")
    return table


def _cells(one: Stretch, part: str) -> tuple[str, str]:
    if part not in one.seconds:
        return "", ""
    return _milliseconds(one.seconds[part]), f"{one.shares.get(part, 0.0):.1%}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _lines(found: Profile, run: Run) -> Iterator[str]:
    """The pace, the traffic, and where the files are."""
    if found.round_s:
        pace = f"{1 / found.round_s:.3g} rounds/s after the first, {_milliseconds(found.round_s)} ms each on average"
        yield f"{pace}; owners at once: {found.at_once}"
    yield f"a round: {numbers.size(found.bytes_up)} received, {numbers.size(found.bytes_down)} sent"
    yield f"profile {run.directory / PROFILE}"
    if (run.directory / TIMELINE).exists():
        yield f"timeline {run.directory / TIMELINE}: open it in ui.perfetto.dev or chrome://tracing"
