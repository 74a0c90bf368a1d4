"""What tells variants apart, and names for them: ``fedprox mu=0.1 · epsilon=4``.

Where kinds of privacy are mixed, a level begins with its kind: ``owner epsilon=4``.

Works on flattened experiments: dotted keys to values. A key is *telling* where it differs between experiments
that agree on the ``name`` of every section around it, so that ``strategy.mu`` is no difference between FedAvg
and FedProx but is one between two runs of FedProx.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
"""Dotted keys of an experiment to values."""

IGNORED = ("name", "seed", "search", "resources", "placement")
"""Sections that do not change what is learned."""
LEVEL = ("privacy.name", "privacy.epsilon", "privacy.noise_multiplier", "privacy.delta")
"""Settings that make up the level of privacy."""
SEPARATOR = " · "


def flattened(experiment: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in experiment.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def compared(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened experiment without what a comparison ignores."""
    return flattened({key: value for key, value in experiment.items() if key not in IGNORED})


def identity(settings: Settings) -> str:
    """One string for equal settings, whatever the order of their keys."""
    return json.dumps(settings, sort_keys=True, default=str)


def varied(all_settings: Sequence[Settings]) -> tuple[str, ...]:
    """Keys whose values differ, or that only some have, in order of appearance."""
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    return tuple(key for key in keys if len({_value_of(settings, key) for settings in all_settings}) > 1)


def telling(all_settings: Sequence[Settings]) -> tuple[str, ...]:
    """Keys that differ between settings whose enclosing sections have the same names."""
    return tuple(key for key in varied(all_settings) if _tells(key, all_settings))


def _tells(key: str, all_settings: Sequence[Settings]) -> bool:
    values: dict[tuple[Any, ...], set[str]] = {}
    for settings in all_settings:
        values.setdefault(_enclosing_names(settings, key), set()).add(_value_of(settings, key))
    return any(len(found) > 1 for found in values.values())


def _enclosing_names(settings: Settings, key: str) -> tuple[Any, ...]:
    parts = key.split(".")
    names = [".".join([*parts[:depth], "name"]) for depth in range(1, len(parts))]
    return tuple(str(settings.get(name)) for name in names if name != key)


def _value_of(settings: Settings, key: str) -> str:
    return json.dumps(settings[key], sort_keys=True, default=str) if key in settings else "absent"


def kinds(all_settings: Iterable[Settings]) -> tuple[str, ...]:
    """Kinds of differential privacy that are asked for, by name."""
    return tuple(sorted({str(one["privacy.name"]) for one in all_settings if is_private(one)}))


def level_label(settings: Settings, telling_keys: Iterable[str], kind: str = "") -> str:
    """The level of privacy that was planned: ``no DP``, ``epsilon=4`` or ``noise=1.1``, after its kind if given."""
    if not is_private(settings):
        return "no DP"
    epsilon = settings.get("privacy.epsilon")
    noise = settings.get("privacy.noise_multiplier")
    label = f"epsilon={shown(epsilon)}" if epsilon is not None else f"noise={shown(noise)}"
    if "privacy.delta" in telling_keys:
        label += f" delta={shown(settings.get('privacy.delta'))}"
    return f"{kind} {label}" if kind else label


def is_private(settings: Settings) -> bool:
    """Whether the experiment asks for differential privacy."""
    return bool(settings.get("privacy.name", "none") != "none")


def strategy_label(settings: Settings, telling_keys: Iterable[str]) -> str:
    """The strategy with mu, and with whatever else of it differs: ``fedprox mu=0.1``."""
    keys = dict.fromkeys(["strategy.mu", *(key for key in telling_keys if key.startswith("strategy."))])
    given = [key for key in keys if key in settings and key != "strategy.name"]
    name = str(settings.get("strategy.name", "?"))
    return " ".join([name, *(_assignment(key, settings, given) for key in given)])


def other_labels(settings: Settings, telling_keys: Iterable[str]) -> list[str]:
    """What differs beside strategy and level: ``["clip=0.5", "rounds=10"]``."""
    keys = [key for key in telling_keys if key not in LEVEL and not key.startswith("strategy.")]
    return [_assignment(key, settings, keys) for key in keys if key in settings]


def _assignment(key: str, settings: Settings, among: Sequence[str]) -> str:
    return f"{_short(key, among)}={shown(settings[key])}"


def _short(key: str, among: Sequence[str]) -> str:
    """The last part of a key; more of it where that is ambiguous or says too little."""
    parts = key.split(".")
    if parts[-1] == "name" and len(parts) > 1:
        return parts[-2]
    clashes = sum(other.split(".")[-1] == parts[-1] for other in among) > 1
    return key if clashes or parts[-1] == "seed" else parts[-1]


def shown(value: Any) -> str:
    """A setting's value as a label shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)
