"""Rules between privacy and the rest: each fires with its message, alone, and not where its remedy is followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedray.config import Experiment, validated
from fedray.errors import ConfigError

UNIFORM = {"name": "fedavg", "weighting": "uniform"}
BY_ROWS = {"name": "fedavg", "weighting": "examples"}
CYCLIC = {"name": "cyclic", "size": 3}
POISSON = {"name": "poisson", "rate": 0.5}


def of(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "noise_multiplier": 1.0, **settings}


def raw(privacy: Any, **settings: Any) -> dict[str, Any]:
    return {"privacy": privacy, "strategy": UNIFORM, **settings}


TREE, BANDED = of("owner", noise="tree"), of("owner", noise="banded")

RULES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "scaling by private rows": (
        raw(of("example"), data={"name": "digits", "scaling": "owner"}),
        "data.scaling is 'owner' under example-level privacy",
        {"data": {"name": "digits", "scaling": {"name": "fixed", "center": [0.0], "scale": [16.0]}}},
    ),
    **{
        f"training figures under {name}": (
            raw(of(name), evaluation={"train": True}),
            f"evaluation.train is on under privacy '{name}'",
            {"evaluation": {"train": False}},
        )
        for name in ("example", "owner", "distributed")
    },
    "training figures under local": (
        raw(of("local"), evaluation={"train": True}, protection="plain"),
        "evaluation.train is on under privacy 'local'",
        {"evaluation": {"train": False}},
    ),
    "a task of one's own under example-level privacy": (
        raw(of("example"), task="package.module:task"),
        "a task of your own is combined with example-level privacy",
        {"privacy": of("owner")},
    ),
    "noise on a figure that nothing bounds": (
        raw(of("example"), metrics=["squared_error"], loss="mse", evaluation={"noise_multiplier": 9.0}),
        "nothing bounds what one row adds",
        {"metrics": ["binary_accuracy"]},
    ),
    "weights that nothing bounds": (
        raw(of("owner"), strategy=BY_ROWS),
        "strategy.weighting is 'examples' under privacy 'owner'",
        {"privacy": of("owner", weight_bound=100)},
    ),
    "weights under distributed privacy": (
        raw(of("distributed"), strategy=BY_ROWS),
        "strategy.weighting is 'examples' under privacy 'distributed'",
        {"strategy": UNIFORM},
    ),
    "weights under local privacy": (
        raw(of("local"), strategy=BY_ROWS, protection="plain"),
        "strategy.weighting is 'examples' under privacy 'local'",
        {"strategy": UNIFORM},
    ),
    "a bound on weights that are all alike": (
        raw(of("owner", weight_bound=100)),
        "privacy.weight_bound is given, but strategy.weighting is 'uniform'",
        {"strategy": BY_ROWS},
    ),
    "a tree without turns": (raw(TREE), "need owners that take part in turn", {"cohort": CYCLIC}),
    "bands over a sample": (raw(BANDED, cohort=POISSON), "need owners that take part in turn", {"cohort": CYCLIC}),
    "a tree over a sample of fixed size": (
        raw(TREE, cohort={"name": "fixed", "size": 3}),
        "need owners that take part in turn",
        {"privacy": of("owner")},
    ),
    "a clip that moves under a tree": (
        raw({**TREE, "clipping": "adaptive"}, cohort=CYCLIC),
        "privacy.clipping is 'adaptive' with noise that is correlated",
        {"privacy": of("owner", clipping="adaptive")},
    ),
    "a clip that moves under bands": (
        raw({**BANDED, "clipping": "adaptive"}, cohort=CYCLIC),
        "privacy.clipping is 'adaptive' with noise that is correlated",
        {"privacy": BANDED},
    ),
    **{
        f"shares of noise under {protection}": (
            raw(of("distributed"), protection=protection),
            f"privacy 'distributed' with protection '{protection}'",
            {"protection": "masked"},
        )
        for protection in ("plain", "ckks", "bfv")
    },
    **{
        f"local noise under {protection}": (
            raw(of("local"), protection=protection),
            f"privacy 'local' with protection '{protection}'",
            {"protection": "plain"},
        )
        for protection in ("ckks", "bfv")
    },
    "shares of noise over a sample": (
        raw(of("distributed"), cohort=POISSON),
        "privacy 'distributed' with cohort 'poisson'",
        {"cohort": {"name": "fixed", "size": 4}},
    ),
    "local noise over a sample": (
        raw(of("local"), cohort=POISSON, protection="plain"),
        "privacy 'local' with cohort 'poisson'",
        {"cohort": CYCLIC},
    ),
}


class Unchecked(Experiment):
    """Sections that are sound by themselves, whatever they are together."""

    def _broken_rules(self) -> list[tuple[bool, str]]:
        return []


def rules_of(experiment: Experiment) -> list[tuple[bool, str]]:
    """All rules of privacy, and whether they are broken."""
    return [*experiment._broken_rules_of_privacy(), *experiment._broken_rules_of_owner_level()]


def broken(experiment: Mapping[str, Any]) -> list[str]:
    """Messages of all rules that fire."""
    rules = rules_of(Unchecked.model_validate(experiment))
    return [message for is_broken, message in rules if is_broken]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_fires_with_its_message_and_no_other_does(name: str) -> None:
    experiment, message, _ = RULES[name]
    (found,) = broken(experiment)
    assert message in found
    with pytest.raises(ConfigError) as refusal:
        validated(experiment)
    assert message in " ".join(str(refusal.value).split())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_silent_where_what_it_asks_for_is_done(name: str) -> None:
    experiment, _, remedy = RULES[name]
    assert broken({**experiment, **remedy}) == []
    validated({**experiment, **remedy})


SOUND: dict[str, dict[str, Any]] = {
    "no privacy at all": raw(
        "none", strategy=BY_ROWS, evaluation={"train": True}, data={"name": "digits", "scaling": "owner"}
    ),
    "noise on bounded figures": raw(of("example"), strategy=BY_ROWS, evaluation={"noise_multiplier": 9.0}),
    "owner, scaling by its own rows": raw(of("owner"), data={"name": "digits", "scaling": "owner"}),
    "owner, own task": raw(of("owner"), task="package.module:task", evaluation={"noise_multiplier": 9.0}),
    "owner, own metric": raw(of("owner"), metrics=["package.module:metric"], evaluation={"noise_multiplier": 9.0}),
    "owner, sample": raw(of("owner", clipping="adaptive"), cohort=POISSON, protection="plain"),
    "owner, encrypted": raw(of("owner"), protection="ckks"),
    "tree in turn": raw(TREE, cohort=CYCLIC),
    "bands in turn, weighted": raw({**BANDED, "weight_bound": 9}, cohort=CYCLIC, strategy=BY_ROWS),
    "distributed, adaptive": raw(of("distributed", clipping="adaptive"), cohort=CYCLIC),
    "local, masked": raw(of("local"), protection="masked"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_combinations_are_taken(name: str) -> None:
    assert broken(SOUND[name]) == []
    validated(SOUND[name])


def test_every_rule_is_broken_by_some_experiment_here() -> None:
    """A rule that is added needs its line."""
    n_rules = len(rules_of(validated(raw("none"))))
    fired = set()
    for experiment, *_ in RULES.values():
        rules = rules_of(Unchecked.model_validate(experiment))
        fired |= {place for place, (is_broken, _) in enumerate(rules) if is_broken}
    assert fired == set(range(n_rules))
