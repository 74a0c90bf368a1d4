"""Search spaces: the same experiment with lists or ranges in it.

A list is tried in full where the schema takes no list but takes its elements; a mapping with one of the keys
``uniform``, ``loguniform``, ``randint`` or ``choice`` is sampled. The schema itself decides, so that list-valued
settings such as ``model.hidden: [64, 32]`` stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from fedray.config.experiment import Experiment
from fedray.config.loading import Path, Raw, override, real_path, validated
from fedray.errors import ConfigError

KINDS = ("uniform", "loguniform", "randint", "choice")


@dataclass(frozen=True)
class Range:
    """A setting that is sampled.

    Attributes:
        kind: one of ``KINDS``.
        values: lower and upper bound, or the choices.
    """

    kind: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """An experiment with open settings.

    Attributes:
        base: the mapping of the experiment, open settings left out.
        grids: dotted keys to the values that are tried in full.
        ranges: dotted keys to what is sampled.
    """

    base: Raw
    grids: Mapping[str, tuple[Any, ...]]
    ranges: Mapping[str, Range]

    @property
    def n_grid(self) -> int:
        """Points of the grid; each is tried with every draw from the ranges."""
        return math.prod(len(values) for values in self.grids.values())

    def points(self) -> Iterator[Raw]:
        """Overrides for every point of the grid, sampled settings at their bounds or choices."""
        keys = [*self.grids, *self.ranges]
        values = [*self.grids.values(), *(spread.values for spread in self.ranges.values())]
        for point in product(*values):
            yield dict(zip(keys, point, strict=True))

    def experiments(self) -> list[Experiment]:
        """The experiment at every point.

        Raises:
            ConfigError: one of them breaks a rule; says which.
        """
        found = []
        for point in self.points():
            try:
                found.append(self.at(point))
            except ConfigError as error:
                if not point:
                    raise
                settings = ", ".join(f"{key}={value!r}" for key, value in point.items())
                raise ConfigError(f"at {settings}: {error.found}", error.expected, error.remedy) from None
        return found

    def at(self, point: Mapping[str, Any]) -> Experiment:
        """The experiment at one point.

        Raises:
            ConfigError: it breaks a rule.
        """
        return validated(override(self.base, point))


def separate(raw: Mapping[str, Any]) -> Space:
    """Tell fixed settings, grids and ranges apart.

    Raises:
        ConfigError: a range is malformed, or stands inside a list.
    """
    ranges = {".".join(path): _range(path, value) for path, value in _find(raw, _is_range)}
    base = override(raw, {})
    for key in ranges:
        _remove(base, key)
    grids: dict[str, tuple[Any, ...]] = {}
    for path, values in list(_find(base, lambda value: isinstance(value, list))):
        if elements := _grid(base, path, values):
            grids[".".join(path)] = elements
    for key in grids:
        _remove(base, key)
    return Space(base, grids, ranges)


def _grid(base: Raw, path: Path, values: Sequence[Any]) -> tuple[Any, ...]:
    """The elements to try, or nothing if the list is itself the value (or simply wrong)."""
    key = ".".join(path)
    if not values or not _refused(override(base, {key: values}), path):
        return ()
    elements: list[Any] = []
    for value in values:
        inner = list(_find({key: value}, lambda item: isinstance(item, list)))
        elements += _expanded(base, path, value, [(where[1:], items) for where, items in inner])
    if any(not _refused(override(base, {key: element}), path) for element in elements):
        return tuple(elements)
    return ()


def _expanded(base: Raw, path: Path, value: Any, lists: Sequence[tuple[Path, list[Any]]]) -> list[Any]:
    """One element for every combination of the grids inside it."""
    if not isinstance(value, Mapping):
        return [value]
    if any(True for _ in _find(value, _is_range)):
        raise ConfigError(
            f"{'.'.join(path)} holds a range inside a list",
            "ranges outside lists",
            "write the setting by itself",
        )
    outer = override(base, {".".join(path): value})
    options = {".".join(where): items for where, items in lists if _refused(outer, (*path, *where)) and len(where) > 0}
    return [override(value, dict(zip(options, combination, strict=True))) for combination in product(*options.values())]


def _refused(raw: Mapping[str, Any], path: Path) -> bool:
    """Whether the schema finds fault with the value at ``path``."""
    try:
        Experiment.model_validate(dict(raw))
    except ValidationError as error:
        return any(real_path(raw, item["loc"])[: len(path)] == path for item in error.errors())
    return False


def _find(value: Any, wanted: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Paths of all values that are wanted; does not look inside those, nor inside lists."""
    if path and wanted(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _find(item, wanted, (*path, str(key)))


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS


def _range(path: Path, value: Mapping[str, Any]) -> Range:
    ((kind, values),) = value.items()
    if kind != "choice" and isinstance(values, list):
        values = [_number(bound) for bound in values]
    bounds = isinstance(values, list) and len(values) == 2 and all(isinstance(bound, int | float) for bound in values)
    if (kind == "choice" and isinstance(values, list) and values) or (
        bounds and values[0] < values[1] and (kind != "loguniform" or values[0] > 0)
    ):
        return Range(kind, tuple(values))
    raise ConfigError(
        f"{'.'.join(path)}: {{{kind}: {values!r}}}",
        "choice: [a, b, ...], uniform: [low, high], loguniform: [low > 0, high] or randint: [low, high]",
        "correct the range",
    )


def _number(value: Any) -> Any:
    """YAML 1.1 takes ``1e-4`` for a string; read it as the schema reads such a setting."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _remove(raw: Raw, dotted: str) -> None:
    *path, last = dotted.split(".")
    for part in path:
        raw = raw[part]
    del raw[last]
