"""The leakage report: what owners could have told of labels, measured on a run's own messages, and who saw what."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fedray.vertical.cut import NoNoise
from fedray.vertical.fusion import Concat, Fusion
from fedray.vertical.plans import FitPlan, Missing
from fedray.vertical.records import EpochRecord

_WIDTH = 110


@dataclass(frozen=True, repr=False)
class LeakageReport:
    """What leaked in a run. Printing it shows it.

    Attributes:
        holder: the label holder's name.
        owners: feature owners' names.
        missing: how rows that an owner lacks were treated.
        fusion: what the label holder got of embeddings.
        n_alone: common rows that one owner alone has.
        plans: of all fits, with their defences.
        records: all epochs, with the AUC of both attacks at each owner.
    """

    holder: str
    owners: Sequence[str]
    missing: Missing
    fusion: Fusion
    n_alone: int
    plans: Sequence[FitPlan]
    records: Sequence[EpochRecord]

    def worst(self, attack: str) -> float:
        """The largest AUC of an attack, ``norm`` or ``cosine``, over epochs and owners; nan where none was measured."""
        found = [getattr(leak, attack) for record in self.records for leak in record.leaks.values()]
        return max((one for one in found if not math.isnan(one)), default=math.nan)

    def __rich__(self) -> Group:
        words = [Text(f"- {line}") for line in self.words()]
        return Group(self._table(), Text(), *words) if self._is_measured else Group(*words)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]  # the file is the StringIO from above
        return text

    __repr__ = __str__

    def words(self) -> Iterator[str]:
        """A line for what each kind of party saw, and for each defence."""
        yield f"{self.holder} saw whom of its people each owner has, {self._embeddings()}."
        yield f"Each owner saw which of its people {self.holder} has labels for{self._rows()}, and {self._gradients()}."
        yield self._labels()
        yield "The caller saw figures of each epoch, and predictions if it asked for them; no row, label or embedding."
        if not self._is_measured:
            yield "The attacks are for two classes in a batch; none was run."

    @property
    def _is_measured(self) -> bool:
        return any(record.leaks for record in self.records)

    def _table(self) -> Table:
        table = Table(title="AUC of label attacks by an owner, 0.5 for a guess", title_justify="left")
        for column in ("epoch", "owner", "norm attack", "cosine attack", "held-out AUC of the model"):
            table.add_column(column, justify="left" if column == "owner" else "right")
        for record in self.records:
            for name, leak in record.leaks.items():
                own = record.holdout.get("auc")
                model = "-" if own is None else f"{own:.3f}"
                table.add_row(str(record.epoch), name, f"{leak.norm:.3f}", f"{leak.cosine:.3f}", model)
        return table

    def _embeddings(self) -> str:
        if isinstance(self.fusion, Concat):
            return f"and every embedding of every owner, a row each{self._noise()}: inputs may be inverted from these"
        alone = f", but for the {self.n_alone} people whom one owner alone has" if self.n_alone else ""
        return f"and sums of embeddings over {len(self.owners)} owners{self._noise()}; no owner's own{alone}"

    def _noise(self) -> str:
        """What is said of activations: the least that any fit did."""
        noises = [plan.activations for plan in self.plans]
        told = dict.fromkeys(f"values clipped to {one.clip:g} with noise of {one.deviation:g}" for one in noises if one)
        return "" if None in noises else f", {' or '.join(told)}"

    def _rows(self) -> str:
        return "" if self.missing == "allow" else " and every other owner has too"

    def _gradients(self) -> str:
        cuts = [plan.cut for plan in self.plans]
        told = ", then ".join(
            dict.fromkeys("without noise" if one == NoNoise() else f"with noise ({one})" for one in cuts)
        )
        table = ": the table says what these tell of labels" if self._is_measured else ""
        return f"a gradient a row of every batch, {told}{table}"

    def _labels(self) -> str:
        private = self.plans[-1].label_dp
        if private is None:
            return "Labels were used as they are: nothing bounds what gradients and model tell of them."
        return (
            f"Labels to train on were randomised once: epsilon {private.epsilon:g} for a label, on "
            f"{self.holder}'s ledger. Held-out figures and AUCs are of true labels."
        )
