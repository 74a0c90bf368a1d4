"""The commands. Each one reads an experiment, hands it on, and shows what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from fedray.cli.audit_privacy import audit_privacy
from fedray.cli.cluster import app as cluster
from fedray.cli.doctor import doctor
from fedray.cli.export import export
from fedray.cli.ledger import app as ledger
from fedray.cli.screen import (
    RoundsTable,
    TrialsProgress,
    claims_table,
    console,
    errors,
    live,
    live_trials,
    print_notes,
    table_of,
)
from fedray.cli.vertical import is_vertical, run_vertical
from fedray.config.loading import json_schema, load, override, parse_overrides, read_yaml
from fedray.errors import RecordsError, RunError

app = typer.Typer(
    name="fedray",
    help="Federated learning on Ray for PyTorch: strategies compared under differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.add_typer(ledger, name="ledger")
app.add_typer(cluster, name="cluster")
app.command()(audit_privacy)
app.command()(doctor)
app.command()(export)

ExperimentFile = Annotated[Path | None, typer.Argument(help="An experiment in YAML.", metavar="EXPERIMENT.yaml")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a setting, e.g. `strategy.mu=0.1`; may be repeated.",
    ),
]
Directory = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="New directory for the records; runs/NAME-TIME when left out."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster, `auto` or HOST:PORT; else this machine."),
]


@app.command()
def run(
    experiment: ExperimentFile = None,
    set_: Settings = [],  # noqa: B006  # typer reads the default and never changes it
    out: Directory = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_DIR", help="Go on with a run that was cut off, instead; its directory, or checkpoints.path."
        ),
    ] = None,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="All owners in this process, for a debugger. Same results on CPUs, to the bit."
        ),
    ] = False,
    address: Address = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Show where time went; leaves profile.json, and on Ray timeline.json, beside the records."
        ),
    ] = False,
) -> None:
    """Run one federation and write its records.

    Shows each round as it ends: updates received of those asked for, loss and metric on owners' held-out rows,
    the largest epsilon spent, bytes and time. Exit code 0 when all rounds ran, or all that owners' budgets allow.
    """
    from fedray import running
    from fedray.cli.profile import show_profile
    from fedray.report import write_report

    _require_one(experiment, resume)
    if experiment is not None and is_vertical(read_yaml(experiment)):
        if profile:
            raise typer.BadParameter("--profile is for runs in rounds, not for kind: vertical")
        run_vertical(read_yaml(experiment), parse_overrides(set_), out, in_process=in_process, address=address)
        return
    if experiment is not None:
        settings = load(experiment, parse_overrides(set_))
        federation = running.run(settings, out, in_process=in_process, address=address, timeline=profile)
    else:
        _require_nothing_else(set_, out)
        federation = running.resume(str(resume), in_process=in_process, address=address, timeline=profile)
        settings = federation.experiment
    table = RoundsTable(str(settings.search.metric), settings.rounds)
    console.print(
        f"{settings.name}: {settings.strategy.name}, privacy {settings.privacy.name}, "
        f"protection {settings.protection.name}, {settings.rounds} rounds"
    )
    with live(table):
        shown = 0
        for record in federation:
            print_notes(federation.notes[shown:])
            shown = len(federation.notes)
            table.add(record)
    records = _read([federation.directory])
    report = write_report(records, federation.directory / "report.html")
    if records[0].status == "exhausted":
        _print_exhausted(records[0])
    if profile:
        show_profile(federation, records[0], in_process=in_process)
    _print_places(federation.directory, report, "rounds.parquet")


@app.command()
def compare(
    experiment: Annotated[
        Path | None,
        typer.Argument(help="An experiment with lists or ranges in it.", metavar="EXPERIMENT.yaml"),
    ] = None,
    set_: Settings = [],  # noqa: B006  # typer reads the default and never changes it
    out: Directory = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a comparison that was cut off, instead.")
    ] = None,
    address: Address = None,
) -> None:
    """Run an experiment at every point of a search space with Ray Tune.

    A list where one value is expected is tried in full: `strategy: [fedavg, {name: fedprox, mu: 0.1}]`. A mapping
    `{loguniform: [0.001, 1]}` (or uniform, randint, choice) is sampled `search.samples` times. With
    `search.draws: random_stopping` both are drawn from, a secret number of times.
    """
    _require_one(experiment, resume)
    if resume is not None:
        _require_nothing_else(set_, out)
    from fedray.config.space import separate
    from fedray.report import write_report
    from fedray.report.comparison import write_summary
    from fedray.tune import compare as start
    from fedray.tune import read_space

    raw = read_yaml(experiment) if experiment else read_space(str(resume))
    raw = override(raw, parse_overrides(set_))
    space = separate(raw)
    first = space.experiments()[0]
    draws = first.search.draws
    n_trials = None if draws.name == "random_stopping" else space.n_grid * first.search.samples
    progress = TrialsProgress(n_trials, str(first.search.metric))
    how_many = "trials, their number drawn in secret," if n_trials is None else f"{n_trials} trials"
    console.print(f"{first.name}: {how_many} of {first.rounds} rounds")
    with live_trials(progress):
        result = start(raw, directory=resume or out, resume=resume is not None, address=address, watch=progress.watch)
    report = write_report(result.runs, result.directory / "report.html")
    analysed = _comparison(result.runs)
    write_summary(result.directory / "summary.parquet", analysed)
    _print_comparison(analysed)
    _print_places(result.directory, report, "trials/*.parquet")
    if result.n_failed:
        console.print(f"[bold red]{result.n_failed} trials failed[/]; see {result.directory / 'tune'}")
        raise typer.Exit(RunError.exit_code)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Directories of runs or comparisons, or record files.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The report's file.")] = None,
) -> None:
    """Write the report again, from records; several runs become one comparison."""
    from fedray.report import write_report

    runs = _read(directories)
    first = directories[0]
    path = write_report(runs, out or (first / "report.html" if first.is_dir() else first.with_suffix(".html")))
    _print_comparison(_comparison(runs))
    console.print(f"report  {path}")


@app.command()
def audit(directories: Annotated[list[Path], typer.Argument(help="Directories of runs, or record files.")]) -> None:
    """Hold what a run's protection promises against its records.

    Exit code 1 when a promise was not kept.
    """
    from fedray.report.audit import audit as claims_of

    runs = {run.label: claims_of(run) for run in _read(directories)}
    for label, claims in runs.items():
        console.print(Text(label, style="bold"))
        console.print(claims_table(claims))
    if any(claim.verdict == "fails" for claims in runs.values() for claim in claims):
        raise typer.Exit(1)


@app.command()
def enrol(owner: Annotated[str, typer.Argument(help="The owner's name, as in the data.")]) -> None:
    """Make this owner's signing key on this machine, if it has none, and print its public half.

    Send what is printed to whoever writes the experiment, over a channel that you trust; it belongs under
    `protection.identities`. The key file stays here, readable by you alone.
    """
    from fedray.protection.identity import Identity, key_file

    identity = Identity.kept(key_file(owner))
    identity.save()
    errors.print(f"key file {key_file(owner)}", highlight=False, soft_wrap=True)
    print(f"{owner}: {identity.public.hex()}")


@app.command()
def datasets() -> None:
    """List the built-in data sets."""
    from fedray.data import catalogue

    for info in catalogue():
        facts = [
            f"{info.n_rows} rows" if info.n_rows else "",
            f"features {info.feature_shape}" if info.feature_shape else "",
            f"{info.n_classes} classes" if info.n_classes else "",
            f"{info.owners} owners" if info.owners != "yours" else "",
        ]
        console.print(Text(info.name, style="bold"))
        console.print(Padding(Text(info.summary), (0, 0, 0, 2)))
        for line in (", ".join(filter(None, facts)), f"{info.source}; {info.licence}; {info.citation}"):
            if info.owners != "yours":
                console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))
    console.print("\nYour own data: data: {name: tables, path: FOLDER}; see docs/data.md", markup=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of an experiment file, for editors."""
    print(json_schema())


def _require_one(experiment: Path | None, resume: Path | str | None) -> None:
    if (experiment is None) == (resume is None):
        raise typer.BadParameter("give an EXPERIMENT.yaml or --resume DIR, one of them")


def _require_nothing_else(set_: list[str], out: Path | None) -> None:
    if set_ or out:
        raise typer.BadParameter("--resume goes on with what was begun; it takes neither --set nor --out")


def _read(directories: list[Path]) -> list[Any]:
    from fedray.records import find_runs

    missing = [path for path in directories if not path.exists()]
    if missing:
        raise RecordsError(f"{missing[0]} does not exist", "a run directory or a record file", "check the path")
    return [run for path in directories for run in find_runs(path)]


def _comparison(runs: Any) -> Any:
    from fedray.report.comparison import compare as analyse

    return analyse(runs)


def _print_comparison(comparison: Any) -> None:
    from fedray.report.comparison import as_rows
    from fedray.report.wording import costs

    console.print()
    rows = as_rows(comparison)
    left_out = {"strategy"} if any(row["epsilon"] != "no DP" for row in rows) else {"strategy", "epsilon", "Pareto"}
    console.print(table_of([{key: row[key] for key in row if key not in left_out} for row in rows]))
    console.print()
    for line in costs(comparison.cost):
        console.print(line, highlight=False)


def _print_exhausted(run: Any) -> None:
    """In which round budgets ran out, and where an owner looks."""
    done, planned = run.rounds[-1].round, run.experiment["rounds"]
    console.print(
        f"ended in round {done} of {planned}: too few owners have a privacy budget left. An owner sees what it has "
        "spent, and on what, with `fedray ledger show`.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_places(directory: Path, report_path: Path, records: str) -> None:
    console.print(f"records {directory / records}", highlight=False)
    console.print(f"report  {report_path}", highlight=False)
