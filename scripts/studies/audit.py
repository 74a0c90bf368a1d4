"""Audits of example-level privacy by canaries: what five settings claim, the bound from one run, and planted bugs.

Every bug is planted in fedray's own optimizer or batches, while its account goes on claiming what it did. A bound above
the claim is marked with a star.

    .venv/bin/python scripts/studies/audit.py        # a minute
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import fedray
from fedray.auditing import AuditResult, audit_examples
from fedray.privacy import dp_sgd

N_ROWS = 500

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "z 4, 2 rounds of 2 steps, all rows": {"privacy": {"noise_multiplier": 4.0}, "steps": 2, "rounds": 2},
    "epsilon 3, 5 rounds of an epoch, all rows": {"privacy": {"epsilon": 3.0}, "epochs": 1, "rounds": 5},
    "z 2, clip 0.1, one step, all rows": {"privacy": {"noise_multiplier": 2.0, "clip": 0.1}, "steps": 1, "rounds": 1},
    "z 1, 2 rounds of 4 steps, q 0.1": {
        "privacy": {"noise_multiplier": 1.0},
        "steps": 4,
        "rounds": 2,
        "batch_size": 50,
    },
    "epsilon 1, 2 rounds of an epoch, q 0.25": {
        "privacy": {"epsilon": 1.0},
        "epochs": 1,
        "rounds": 2,
        "batch_size": 125,
    },
}


def experiment(setting: Mapping[str, Any], replay_seed: int | None) -> fedray.Experiment:
    """The experiment whose mechanism is audited."""
    train = {"batch_size": N_ROWS, **{key: setting[key] for key in ("batch_size", "steps", "epochs") if key in setting}}
    privacy = {"name": "example", "delta": 1e-5, "unsafe_replay_seed": replay_seed, **setting["privacy"]}
    return fedray.Experiment(rounds=setting["rounds"], train=train, privacy=privacy)


@contextmanager
def noise_times(factor: float) -> Iterator[None]:
    """Noise of another deviation than the account knows of."""
    add_noise = dp_sgd._NoisyOptimizer.add_noise

    def planted(self: Any) -> None:
        claimed = self.noise_multiplier
        self.noise_multiplier = factor * claimed
        add_noise(self)
        self.noise_multiplier = claimed

    with patch.object(dp_sgd._NoisyOptimizer, "add_noise", planted):
        yield


@contextmanager
def no_clipping() -> Iterator[None]:
    """Gradients enter the sum as they are."""

    def planted(self: Any) -> None:
        for parameter in self.params:
            parameter.summed_grad = parameter.grad_sample.sum(0)

    with patch.object(dp_sgd._NoisyOptimizer, "clip_and_accumulate", planted):
        yield


@contextmanager
def no_sampling() -> Iterator[None]:
    """Every row is in every batch."""
    batches = dp_sgd._batches

    def planted(coins: Any, _: float, *rest: Any) -> Any:
        return batches(coins, 1.0, *rest)

    with patch.object(dp_sgd, "_batches", planted):
        yield


BUGS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "as it is": nullcontext,
    "half the noise": lambda: noise_times(0.5),
    "no noise": lambda: noise_times(0.0),
    "no clipping": no_clipping,
    "no sampling": no_sampling,
}


def audited(setting: str, bug: str, n_canaries: int, replay_seed: int | None = None) -> AuditResult:
    """One audit, with a bug planted."""
    with BUGS[bug]():
        return audit_examples(experiment(SETTINGS[setting], replay_seed), n_canaries, N_ROWS)


def table(n_canaries: int) -> str:
    """Markdown: a row a setting, then the bound under each bug."""
    lines = [f"| setting | claimed | {' | '.join(BUGS)} |", "|---" * (len(BUGS) + 2) + "|"]
    for setting in SETTINGS:
        found = [audited(setting, bug, n_canaries) for bug in BUGS]
        bounds = [f"{one.empirical_epsilon:.2f}{'*' if one.verdict == 'violated' else ''}" for one in found]
        lines.append(f"| {setting} | {found[0].claimed_epsilon:.2f} | {' | '.join(bounds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canaries", type=int, default=20_000)
    print(table(parser.parse_args().canaries))
