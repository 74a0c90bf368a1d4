"""``fedray.Vertical``: a vertical run from the caller's side.

    fed = fedray.Vertical(owners={"bank": "bank.csv", "shop": "shop.csv"}, labels=("hospital", "labels.csv"), id="pid")
    fed.align()
    fed.models(bottoms={"bank": mlp(20, 32), "shop": mlp(12, 32)}, top=head(32), fuse="masked_sum")
    history = fed.fit(epochs=5)
    print(fed.leakage_report())

The caller gives tables away as paths or callables, which are opened inside their parties, and gets figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from operator import methodcaller
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedray.config.cluster import Placement
from fedray.environment import environment
from fedray.errors import ConfigError
from fedray.files import append, put
from fedray.run_directory import OWNERS, held, new_directory
from fedray.vertical.aligning import Alignment
from fedray.vertical.bottom import Activations
from fedray.vertical.cut import CutNoise, NoNoise
from fedray.vertical.fusion import Concat, Fusion, MaskedSum
from fedray.vertical.keys import enrolled_keys
from fedray.vertical.leakage import LeakageReport
from fedray.vertical.messages import Part
from fedray.vertical.models import BottomMaker, OptimizerMaker, TopMaker, adam
from fedray.vertical.plans import AlignPlan, FitPlan, LabelPrivacy, Missing
from fedray.vertical.records import EpochRecord
from fedray.vertical.session import InProcess, Session
from fedray.vertical.setting import Setting
from fedray.vertical.tables import Source

SETTINGS, HISTORY = "vertical.json", "history.jsonl"


class Vertical:
    """Parties that hold different columns of the same people, and train one model. A context manager.

    Args:
        owners: feature owner's name to its table: a path, a callable, a mapping of columns or a data frame. Paths and
            callables are opened inside the party; what is handed over otherwise, the caller has seen.
        labels: the label holder's name and table.
        id: the column that tells people apart, at every party.
        target: name of the label's column; the label holder's only other one when left out.
        seed: of batches, initial weights and dropout; never of noise or keys.
        name: names the run.
        directory: where figures are written; ``runs/NAME-TIME`` when left out.
        placement: party's name to where its actor must run.
        identities: party's name to its public signing key in hex, of all parties or of none.
        in_process: all parties in this process, for a debugger; protects nothing.
        address: of a Ray cluster; the one that is there, or this machine alone, when left out.

    Raises:
        ConfigError: names that contradict each other.
    """

    def __init__(
        self,
        owners: Mapping[str, Source],
        labels: tuple[str, Source],
        id: str,  # noqa: A002  # the sketch's word
        *,
        target: str | None = None,
        seed: int = 0,
        name: str = "vertical",
        directory: str | Path | None = None,
        placement: Mapping[str, Placement | Mapping[str, Any]] | None = None,
        identities: Mapping[str, str] | None = None,
        in_process: bool = False,
        address: str | None = None,
    ) -> None:
        holder, table = labels
        _require_names(owners, holder)
        parties = {*owners, holder}
        _require_known("placement", placement or {}, parties)
        if identities:
            _require_all("identities", identities, parties)
        self._owners, self._labels = dict(owners), table
        self._places = {party: Placement.model_validate(place) for party, place in (placement or {}).items()}
        self._in_process, self._address = in_process, address
        self.directory = new_directory(directory, name).absolute()
        enrolled = enrolled_keys(identities or {})
        folder = self.directory / OWNERS
        self._setting = Setting(name, tuple(sorted(owners)), holder, id, target, seed, enrolled, folder)
        self._closing = ExitStack()
        self._opened: Session | None = None
        self._align_plan: AlignPlan | None = None
        self._alignment: Alignment | None = None
        self._fusion: Fusion | None = None
        self._plans: list[FitPlan] = []
        self.history: list[EpochRecord] = []

    def count(self) -> dict[str, int]:
        """How many people each owner shares with the label holder; nobody learns whom. Once, and before ``align``.

        Raises:
            FedrayError: a party's table is unfit, or a party is gone.
        """
        return self._session().of_holder(methodcaller("count"))

    def align(self, missing: Missing = "drop", holdout: float | str = 0.2) -> Alignment:
        """Find the common people by private set intersection. The label holder learns whom it shares with each owner,
        each owner the order of its common rows, the caller how many there are.

        Args:
            missing: ``drop`` keeps people that all owners have; ``allow`` those that at least one has, and an owner
                learns an embedding for those that it lacks.
            holdout: share of common rows that is held out, or the label holder's column that is true for these.

        Raises:
            ConfigError: rows are aligned already, or an argument is out of range.
            FedrayError: a party's table is unfit, too few people are common, or a party is gone.
        """
        plan = AlignPlan(missing, holdout)
        if self._alignment:
            raise ConfigError("rows that are aligned already", "one alignment", "start a new run")
        self._alignment = self._session().of_holder(methodcaller("align", plan))
        self._align_plan = plan
        self._write_settings(self._alignment)
        return self._alignment

    def models(self, bottoms: Mapping[str, BottomMaker], top: TopMaker, fuse: str | Fusion = "concat") -> None:
        """Make the models, each inside its party.

        Args:
            bottoms: owner's name to a module, or to what makes one of the shape of its rows.
            top: a module, or what makes one of the width of fused embeddings and the number of outputs.
            fuse: ``concat`` shows the label holder every embedding, ``masked_sum`` their sum alone. For people whom one
                owner alone has, that sum hides nothing.

        Raises:
            ConfigError: rows are not aligned, a model is missing, or the fusion is unknown or not for so few owners.
            ModelError: models do not fit the rows, each other, or the labels.
        """
        self._require(self._alignment, "align()")
        _require_all("bottoms", bottoms, self._owners)
        fusion = _fusion(fuse)
        fusion.check(dict.fromkeys(self._owners, 1))
        makers = {name: methodcaller("prepare", maker, fusion) for name, maker in bottoms.items()}
        widths = self._session().of_owners(makers)
        self._session().of_holder(methodcaller("prepare", top, fusion, widths))
        self._fusion = fusion

    def fit(
        self,
        epochs: int = 5,
        batch_size: int = 256,
        optimizer: OptimizerMaker | None = None,
        cut: CutNoise | None = None,
        label_dp: LabelPrivacy | None = None,
        activations: Activations | None = None,
    ) -> list[EpochRecord]:
        """Train; again, to go on. A record of each epoch, see ``epochs`` for all else."""
        return list(self.epochs(epochs, batch_size, optimizer, cut, label_dp, activations))

    def epochs(
        self,
        epochs: int = 5,
        batch_size: int = 256,
        optimizer: OptimizerMaker | None = None,
        cut: CutNoise | None = None,
        label_dp: LabelPrivacy | None = None,
        activations: Activations | None = None,
    ) -> Iterator[EpochRecord]:
        """Train, one epoch each time that the next record is asked for.

        Args:
            epochs: passes over the rows.
            batch_size: rows a step.
            optimizer: makes each party's optimizer; Adam when left out.
            cut: noise on the gradients that leave the label holder; none when left out.
            label_dp: how labels are randomised; not at all when left out.
            activations: what owners do to embeddings before they leave; nothing when left out.

        Raises:
            ConfigError: there are no models yet, there is less than one epoch, the optimizer cannot be made, or label
                privacy is another than before.
            BudgetExhausted: the label holder's ledger does not allow the label privacy.
            RunError: a party is gone, or the loss is no longer finite.
            ProtocolError: a party sent what it should not.
        """
        self._require(self._fusion, "models()")
        if epochs < 1:
            raise ConfigError(f"{epochs} epochs", "1 or more", "correct it")
        plan = FitPlan(batch_size, optimizer or adam(), cut or NoNoise(), label_dp, activations)
        session = self._session()
        session.of_holder(methodcaller("begin", plan))
        session.of_owners(dict.fromkeys(self._owners, methodcaller("begin", plan)))
        self._plans.append(plan)
        for _ in range(epochs):
            record = session.of_holder(methodcaller("epoch"))
            self._write(record)
            yield record

    def predict(self, part: Part = "holdout") -> NDArray[np.float32]:
        """Predictions of a part, given to the caller, who asks for them: without ids, in the common order.

        Returns:
            Probability of the second of two classes ``(n,)``, of each class ``(n, n_classes)``, or numbers ``(n,)``.

        Raises:
            ConfigError: there are no models yet, or no such part.
            FedrayError: a party is gone, or sent what it should not.
        """
        self._require_part(part)
        found: NDArray[np.float32] = self._session().of_holder(methodcaller("predict", part))
        return found

    def write_predictions(self, file: str | Path, part: Part = "holdout") -> None:
        """Have the label holder write ids and predictions on its own node; the caller sees none.

        Raises:
            ConfigError: there are no models yet, no such part, or the file cannot be written.
            FedrayError: a party is gone, or sent what it should not.
        """
        self._require_part(part)
        self._session().of_holder(methodcaller("write_predictions", part, str(Path(file).absolute())))

    def leakage_report(self) -> LeakageReport:
        """What the messages of all epochs so far told, and whom. Printing it shows it.

        Raises:
            ConfigError: nothing was trained yet.
        """
        self._require(self.history or None, "fit()")
        assert self._fusion
        assert self._align_plan
        assert self._alignment
        owners, missing, n_alone = self._setting.owners, self._align_plan.missing, self._alignment.n_alone
        holder, plans, history = self._setting.holder, tuple(self._plans), tuple(self.history)
        return LeakageReport(holder, owners, missing, self._fusion, n_alone, plans, history)

    def save(self, folder: str | Path) -> None:
        """Have every party write its model to ``NAME.safetensors`` in a folder of its own node.

        Raises:
            ConfigError: there are no models yet, or a file cannot be written.
        """
        self._require(self._fusion, "models()")
        save = methodcaller("save", str(Path(folder).absolute()))
        self._session().of_owners(dict.fromkeys(self._owners, save))
        self._session().of_holder(save)

    def close(self) -> None:
        """End the parties, and Ray if it was started for them. What they have not saved is lost."""
        self._closing.close()
        self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session(self) -> Session:
        if self._opened is None:
            if self._alignment:
                raise ConfigError("a run that was closed, or lost a party", "parties at work", "start a new run")
            with ExitStack() as closing:
                closing.enter_context(held(self.directory))
                opened = self._open(closing)
                closing.callback(opened.close)
                opened.of_holder(methodcaller("meet"))
                self._opened, self._closing = opened, closing.pop_all()
        return self._opened

    def _open(self, closing: ExitStack) -> Session:
        if self._in_process:
            return InProcess(self._setting, self._owners, self._labels)
        from fedray.actors.session import ray_session
        from fedray.actors.vertical import OnRay

        closing.enter_context(ray_session(self._address))
        return OnRay(self._setting, self._owners, self._labels, self._places)

    def _write_settings(self, alignment: Alignment) -> None:
        known = self._setting
        parties = {"owners": known.owners, "label_holder": known.holder, "id": known.id_column, "seed": known.seed}
        settings = {"name": known.experiment, **parties, "alignment": asdict(alignment), "environment": environment()}
        put(self.directory / SETTINGS, json.dumps(settings, indent=2).encode())

    def _write(self, record: EpochRecord) -> None:
        self.history.append(record)
        figures = json.loads(json.dumps(asdict(record)), parse_constant=lambda _: None)  # JSON has no NaN
        append(self.directory / HISTORY, (json.dumps(figures) + "\n").encode())

    def _require(self, there: object, call: str) -> None:
        if there is None:
            raise ConfigError("a step that is too early", f"{call} before it", f"call {call} first")

    def _require_part(self, part: str) -> None:
        self._require(self._fusion, "models()")
        if part not in ("train", "holdout"):
            raise ConfigError(f"a part {part!r}", "train or holdout", "correct it")


def _fusion(fuse: str | Fusion) -> Fusion:
    named: Mapping[str, Fusion] = {"concat": Concat(), "masked_sum": MaskedSum()}
    if not isinstance(fuse, str):
        return fuse
    if fuse not in named:
        raise ConfigError(f"fuse={fuse!r}", "concat or masked_sum", "correct it")
    return named[fuse]


def _require_names(owners: Mapping[str, Source], holder: str) -> None:
    if not owners:
        raise ConfigError("no feature owners", "one or more", "name them in owners")
    if holder in owners:
        raise ConfigError(
            f"the name {holder!r} for the label holder and for an owner",
            "two names",
            "if one party has both, give its features under another name; say so when you read who sees what",
        )


def _require_known(what: str, given: Mapping[str, Any], parties: set[str]) -> None:
    if unknown := sorted(set(given) - parties):
        raise ConfigError(
            f"{what} of {', '.join(unknown)}", f"names among {', '.join(sorted(parties))}", "correct the name"
        )


def _require_all(what: str, given: Mapping[str, Any], parties: Any) -> None:
    _require_known(what, given, set(parties))
    if lacking := sorted(set(parties) - set(given)):
        raise ConfigError(f"{what} without {', '.join(lacking)}", "one for each", "add what is missing")
