"""An experiment as lines of YAML, each marked where its value differs between variants."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml


def yaml_lines(
    experiment: Mapping[str, Any], varied: Collection[str], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, bool]]:
    """(line, whether its value differs between variants); the lines joined are the experiment."""
    indent = "  " * len(path)
    for key, value in experiment.items():
        here = (*path, str(key))
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_dumped(str(key))}:", False
            yield from yaml_lines(value, varied, here)
        else:
            text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=10_000)
            for line in text.splitlines():
                yield f"{indent}{line}", ".".join(here) in varied


def _dumped(key: str) -> str:
    """A key, quoted where YAML needs it."""
    return yaml.safe_dump({key: 0}, allow_unicode=True, width=10_000).rpartition(":")[0]
