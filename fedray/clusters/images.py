"""Versions of Ray and Python: those in the names of images, in commands that install, and of this very process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from fedray.clusters.findings import Finding, error

_TAG = re.compile(r"(?:^|[:\-]|ray)(\d+\.\d+\.\d+)(?:\.[0-9a-f]+)?-py(\d)(\d+)")
_INSTALLS = re.compile(r"\bray(?:\[[\w,]+\])?(?:==|-)(\d+\.\d+\.\d+[\w.]*)")


@dataclass(frozen=True)
class Versions:
    """What all nodes must agree on: Ray to the last digit, Python to the minor version."""

    ray: str
    python: str

    @classmethod
    def installed(cls) -> Versions:
        """Those of this process."""
        return cls(version("ray"), "{}.{}".format(*sys.version_info))


@dataclass(frozen=True)
class Image:
    """A container image, by its name: ``rayproject/ray:2.60.0-py311-cu128``.

    An image of your own says what it holds by a tag that ends likewise: ``fedray:0.1.0-ray2.60.0-py311``.
    """

    name: str

    @cached_property
    def versions(self) -> Versions | None:
        """Ray and Python in it; None where the name does not say."""
        found = _TAG.findall(self.name)
        return Versions(found[-1][0], f"{found[-1][1]}.{found[-1][2]}") if found else None

    @property
    def is_official(self) -> bool:
        """Whether Ray's makers publish it."""
        return self.name.startswith(("rayproject/ray:", "rayproject/ray-ml:"))

    @property
    def has_cuda(self) -> bool:
        """Whether its tag says that CUDA is in it."""
        return bool(re.search(r"-(cu\d+|gpu)", self.name))


def check_image(where: str, image: Image, installed: Versions) -> Iterator[Finding]:
    """An image holds the Ray and the Python of this process."""
    found = image.versions
    if found is None:
        yield error(
            where,
            f"image {image.name} does not say which Ray and Python are in it",
            f"pin both in the tag, as in rayproject/ray:{installed.ray}-py{installed.python.replace('.', '')}",
        )
    elif found != installed:
        yield error(
            where,
            f"image {image.name} has Ray {found.ray} and Python {found.python}, here are {installed.ray} and "
            f"{installed.python}",
            f"take the tag {installed.ray}-py{installed.python.replace('.', '')}: nodes of other versions cannot join",
        )


def check_installs(where: str, commands: Sequence[str], installed: Versions) -> Iterator[Finding]:
    """Commands install no other Ray than that of this process."""
    for found in (match for command in commands for match in _INSTALLS.findall(command)):
        if found != installed.ray:
            yield error(where, f"installs Ray {found}, here is {installed.ray}", f"install ray=={installed.ray}")
