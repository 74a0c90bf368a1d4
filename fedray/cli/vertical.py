"""``fedray run`` of a vertical experiment: aligns, trains, and shows each epoch and what leaked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.cli.screen import console
from fedray.config.fields import resolve

if TYPE_CHECKING:
    from fedray.vertical.config import Held, VerticalExperiment
    from fedray.vertical.fusion import Fusion
    from fedray.vertical.models import OptimizerMaker
    from fedray.vertical.records import EpochRecord
    from fedray.vertical.tables import Source
    from fedray.vertical_runs import Vertical

_COLUMNS = ("epoch", "loss", "held-out", "accuracy", "auc", "up", "down", "time")


def is_vertical(raw: Mapping[str, Any]) -> bool:
    """Whether a mapping from a YAML file is a vertical experiment."""
    return raw.get("kind") == "vertical"


def run_vertical(
    raw: Mapping[str, Any],
    overrides: Mapping[str, Any],
    out: Path | None,
    *,
    in_process: bool,
    address: str | None,
) -> None:
    """Run one vertical experiment, and print a line an epoch and the leakage report.

    Raises:
        FedrayError: the experiment, a table or a model is unfit, or a party is gone.
    """
    from fedray.vertical.config import load

    settings = load(raw, overrides)
    with _opened(settings, out, in_process, address) as fed:
        found = fed.align(settings.align.missing, settings.align.holdout)
        console.print(
            f"{settings.name}: {len(settings.owners)} feature owners, {settings.fuse.name}, "
            f"{found.n_train} common rows to train on, {found.n_holdout} held out"
        )
        _prepare(fed, settings)
        _line(_COLUMNS)
        for record in _epochs(fed, settings):
            _line(_cells(record))
        console.print()
        console.print(fed.leakage_report())
        console.print(f"\nfigures {fed.directory}", soft_wrap=True)


def _opened(settings: VerticalExperiment, out: Path | None, in_process: bool, address: str | None) -> Vertical:
    from fedray.vertical_runs import Vertical

    return Vertical(
        {name: _source(held) for name, held in settings.owners.items()},
        (settings.labels.party, _source(settings.labels)),
        settings.id,
        target=settings.labels.target,
        seed=settings.seed,
        name=settings.name,
        directory=out,
        placement=settings.placement,
        identities=settings.identities,
        in_process=in_process,
        address=address,
    )


def _source(held: Held) -> Source:
    """A path, or a function that is imported inside the party."""
    return held.path if held.path is not None else partial(_called, held.source)


def _called(reference: Any) -> Any:
    return resolve(reference)()


def _prepare(fed: Vertical, settings: VerticalExperiment) -> None:
    from fedray.vertical.models import head_of, mlp_of

    bottoms = {
        name: resolve(owner.model) if owner.model else mlp_of(settings.width, owner.hidden)
        for name, owner in settings.owners.items()
    }
    top = resolve(settings.labels.model) if settings.labels.model else head_of(settings.labels.hidden)
    fed.models(bottoms, top, _fusion(settings))


def _fusion(settings: VerticalExperiment) -> Fusion:
    from fedray.vertical.fusion import Concat, MaskedSum

    return Concat() if settings.fuse.name == "concat" else MaskedSum(settings.fuse.clip)


def _epochs(fed: Vertical, settings: VerticalExperiment) -> Iterator[EpochRecord]:
    from fedray.vertical import Activations, Isotropic, LabelPrivacy, MaxNorm

    defences, train = settings.defences, settings.train
    cuts = {"max_norm": MaxNorm, "isotropic": Isotropic}
    return fed.epochs(
        train.epochs,
        train.batch_size,
        _optimizer(settings),
        cut=cuts[defences.cut.name](**defences.cut.model_dump(exclude={"name"})) if defences.cut else None,
        label_dp=LabelPrivacy(defences.label_epsilon) if defences.label_epsilon else None,
        activations=Activations(**defences.activations.model_dump()) if defences.activations else None,
    )


def _optimizer(settings: VerticalExperiment) -> OptimizerMaker:
    from fedray.vertical.models import adam, sgd

    makers = {"adam": adam, "sgd": sgd}
    section = settings.train.optimizer
    return makers[section.name](**section.model_dump(exclude={"name"}))


def _cells(record: EpochRecord) -> tuple[str, ...]:
    figures = [record.holdout.get(name) for name in ("loss", "accuracy", "auc")]
    shown = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
    traffic = [f"{n_bytes / 1000:.1f} kB" for n_bytes in (record.bytes_received, record.bytes_sent)]
    return (str(record.epoch), f"{record.loss:.4f}", *shown, *traffic, f"{sum(record.seconds.values()):.2f} s")


def _line(cells: tuple[str, ...]) -> None:
    console.print("".join(cell.rjust(10) for cell in cells), highlight=False, soft_wrap=True)
