"""OpenMined's package, found when it is needed: it pins protobuf exactly, so that fedray does without it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fedray.errors import ConfigError


def library() -> Any:
    """``private_set_intersection.python``.

    Raises:
        ConfigError: it is not installed, or its protobuf is not.
    """
    try:
        return import_module("private_set_intersection.python")
    except ImportError as error:
        raise ConfigError(
            f"private set intersection without its library ({type(error).__name__}: {error.name})",
            "the package openmined-psi",
            "pip install 'fedray[psi]'",
        ) from None


def decode_error() -> type[Exception]:
    """What protobuf raises for bytes that are no message."""
    error: type[Exception] = import_module("google.protobuf.message").DecodeError
    return error
