"""Field types that the sections of an experiment share: frozen sections, tagged unions, references to code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from fedray.errors import ConfigError


class Section(BaseModel):
    """A frozen part of an experiment; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def _expand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class _ByName:
    """Expands a bare name, and says so in the JSON schema: editors take what ``fedray`` takes."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        section = handler(schema)
        names = list(section.get("discriminator", {}).get("mapping", {}))
        if not names:
            names = [handler.resolve_ref_schema(section)["properties"]["name"]["const"]]
        return {"anyOf": [{"type": "string", "enum": names}, section]}


BY_NAME = _ByName()
"""Lets the bare name stand for a section: ``strategy: fedavg``. Goes with ``Field(discriminator="name")``."""


def _check_reference(value: object) -> object:
    if callable(value) or (isinstance(value, str) and value.count(":") == 1 and all(value.split(":"))):
        return value
    raise ValueError("expected a callable, or its import path as 'package.module:name'")


def reference_name(value: str | Callable[..., Any]) -> str:
    """``package.module:name`` of a callable; a string stands for itself."""
    if isinstance(value, str):
        return value
    qualified = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', type(value).__module__)}:{qualified}"


Reference = Annotated[
    Any,
    BeforeValidator(_check_reference),
    PlainSerializer(reference_name, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "import path 'package.module:name'"}),
]
"""User code: a callable in Python, its import path in YAML."""


def resolve(reference: str | Callable[..., Any]) -> Callable[..., Any]:
    """Import what a reference names.

    Raises:
        ConfigError: the module or the name does not exist, or the thing is not callable.
    """
    if not isinstance(reference, str):
        return reference
    module_name, name = reference.split(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {reference!r}: {error}",
            "the import path of a callable, 'package.module:name'",
            "install the package, or run fedray from the folder that holds it",
        ) from error
    if not callable(found):
        raise ConfigError(f"{reference!r} is a {type(found).__name__}", "a callable", "name a function or a class")
    resolved: Callable[..., Any] = found
    return resolved
