"""``fedray audit-privacy``: canaries in an experiment's own mechanism, and what they give away of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedray.cli.screen import console
from fedray.config import Experiment
from fedray.config.loading import load, parse_overrides

if TYPE_CHECKING:
    from fedray.auditing import AuditResult


def audit_privacy(
    experiment: Annotated[Path, typer.Argument(help="An experiment in YAML.", metavar="EXPERIMENT.yaml")],
    canaries: Annotated[
        int | None, typer.Option(min=16, help="Canaries; 20,000 rows or 1,000 owners when left out.")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=2, help="Example level: rows of an owner, which set the sampling rate.")
    ] = 500,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the lower bound.")] = 0.95,
    set_: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = [],  # noqa: B006  # typer reads the default and never changes it
) -> None:
    """Audit fedray's privacy mechanism at an experiment's settings: a lower bound on epsilon from one run.

    Your data and model are not touched: canaries take their place, each in the run by a secret coin, and an auditor
    guesses the coins from what the run gave out. Exit code 1 when the bound is above the claimed epsilon, which
    proves a bug. A bound below it proves nothing.
    """
    settings = load(experiment, parse_overrides(set_))
    result = _audit(settings, canaries, rows, confidence)
    console.print(_setting(settings, rows if result.unit == "example" else None), highlight=False)
    console.print(_table(result))
    console.print(_sentence(result), highlight=False)
    if result.verdict == "violated":
        raise typer.Exit(1)


def _audit(settings: Experiment, canaries: int | None, rows: int, confidence: float) -> AuditResult:
    from fedray.auditing import audit_examples, audit_owners

    if settings.privacy.name in ("none", "example"):
        return audit_examples(settings, canaries or 20_000, rows, confidence)
    return audit_owners(settings, canaries or 1_000, confidence)


def _setting(settings: Experiment, rows: int | None) -> str:
    work = f"{settings.work.amount} {settings.work.unit} of batch {settings.train.batch_size}"
    kept = f"{work} on {rows} rows an owner" if rows else f"cohort {settings.cohort.name}"
    protection = "plain" if rows else settings.protection.name
    return (
        f"{settings.name}: privacy {settings.privacy.name}, {settings.rounds} rounds, {kept}, protection {protection}; "
        "canaries for data and model"
    )


def _table(result: AuditResult) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in (
        ("unit", result.unit),
        ("claimed epsilon", f"{result.claimed_epsilon:.3f}"),
        (f"lower bound, {result.confidence:.4g} confidence", f"{result.empirical_epsilon:.3f}"),
        ("Gaussian estimate, no bound", f"{result.estimated_epsilon:.3f}"),
        ("largest bound this audit can give", f"{result.reach:.3f}"),
        ("delta", f"{result.delta:.3g}"),
        ("canaries", f"{result.n_canaries}"),
        ("guesses right", f"{result.n_correct} of {result.n_guesses}"),
        ("verdict", result.verdict),
    ):
        table.add_row(name, value)
    return table


def _sentence(result: AuditResult) -> str:
    scope = "This audits fedray's mechanism at these settings, not your data."
    if result.verdict == "violated":
        chance = 1 - result.confidence
        return f"The bound is above the claim: that proves a bug, but for a chance of at most {chance:.2g}. {scope}"
    blind = result.reach <= result.claimed_epsilon
    limit = " Nor could it have been above: give more canaries, or a smaller epsilon or delta." if blind else ""
    return f"The bound is not above the claim, which proves nothing.{limit} {scope}"
