"""Reading experiments from YAML, overriding single values, and saying in one clear error what is wrong."""

from __future__ import annotations

import difflib
import json
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedray.config.experiment import Experiment
from fedray.config.fields import reference_name
from fedray.errors import ConfigError

Raw = dict[str, Any]
Path = tuple[str, ...]
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | pathlib.Path) -> Raw:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        raw = yaml.load(pathlib.Path(path).read_text(), _Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "an experiment file", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}", "a YAML mapping", "correct the line it names") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds {type(raw).__name__}",
            "a YAML mapping of sections",
            "start from an example in the README",
        )
    return raw


class _Loader(yaml.SafeLoader):
    """PyYAML's own takes the last of two values for one key, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_overrides(assignments: Iterable[str]) -> Raw:
    """``["rounds=3", "strategy.mu=0.1"]`` as a mapping of dotted keys; values are read as YAML.

    Raises:
        ConfigError: an assignment has no ``=`` or its value is no YAML.
    """
    overrides: Raw = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {assignment}", "KEY=VALUE, e.g. strategy.mu=0.1", "add the missing part")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: {error}", "a YAML value after '='", "quote it") from error
    return overrides


def override(raw: Mapping[str, Any], overrides: Mapping[str, Any], defaults: BaseModel | None = None) -> Raw:
    """A copy of ``raw`` with dotted keys set; ``defaults`` are those of an experiment when left out.

    A shorthand on the way is expanded (``fedprox`` to ``{name: fedprox}``), and a section that is not there starts as
    the default one: ``train.optimizer.lr`` alone is the learning rate of SGD.

    Raises:
        ConfigError: a key leads through a value that has no parts.
    """
    result: Raw = _copy(raw)
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        node: Raw = result
        default: Any = defaults or Experiment()
        for part in path:
            default = getattr(default, part, None)
            child = node.get(part, {"name": default.name} if hasattr(default, "name") else {})
            if isinstance(child, str):
                child = {"name": child}
            if not isinstance(child, dict):
                raise ConfigError(f"{dotted}: {part!r} is {child!r}", "a section", "check the key")
            node[part] = child
            node = child
        node[last] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return value


def validated(raw: Mapping[str, Any]) -> Experiment:
    """The experiment that a mapping describes.

    Raises:
        ConfigError: with a line for every broken rule.
    """
    try:
        return Experiment.model_validate(dict(raw))
    except ValidationError as error:
        raise explain(error, raw) from None


def load(path: str | pathlib.Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from YAML, with dotted keys overridden.

    Raises:
        ConfigError: the file or a value is wrong.
    """
    return validated(override(read_yaml(path), overrides or {}))


def replaced(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """A copy of an experiment with dotted keys replaced: ``replaced(e, {"strategy.mu": 0.1})``.

    Raises:
        ConfigError: the result breaks a rule.
    """
    return validated(override(as_raw(experiment), overrides))


def as_raw(experiment: Experiment) -> Raw:
    """The mapping of what was set, callables kept as they are: the inverse of ``validated``."""

    def dump(section: BaseModel) -> Raw:
        kept = section.model_fields_set | ({"name"} & set(type(section).model_fields))
        return {key: dump_value(getattr(section, key)) for key in type(section).model_fields if key in kept}

    def dump_value(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return dump(value)
        if isinstance(value, dict):
            return {key: dump_value(item) for key, item in value.items()}
        return value

    return dump(experiment)


def plain(value: Any) -> Any:
    """A raw value as YAML can hold it: callables by their import path, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(value):
        return reference_name(value)
    return str(value) if isinstance(value, pathlib.Path) else value


def as_yaml(experiment: Experiment) -> str:
    """The whole experiment, defaults included, as YAML; callables by their import path."""
    text: str = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
    return text


def json_schema() -> str:
    """JSON schema of an experiment file, for editors."""
    return json.dumps(Experiment.model_json_schema(), indent=2)


def explain(
    error: ValidationError,
    raw: Mapping[str, Any],
    kind: type[BaseModel] = Experiment,
    page: str = "docs/configuration.md",
) -> ConfigError:
    """One ``ConfigError`` for all that pydantic found in ``raw``, which is not of the kind that a page describes."""
    schema = "; `fedray schema` prints the JSON schema for your editor" if kind is Experiment else ""
    return ConfigError(
        "\n  ".join(_describe(dict(item), raw, kind) for item in error.errors()),
        f"an experiment as {page} describes it",
        f"correct the values named above{schema}",
    )


def _describe(item: Mapping[str, Any], raw: Mapping[str, Any], kind: type[BaseModel]) -> str:
    path = list(real_path(raw, item["loc"]))
    where = ".".join(path) or "experiment"
    if item["type"] == "extra_forbidden":
        if path == ["kind"]:
            return "kind: unknown key; `kind: vertical` is for `fedray run` alone"
        close = difflib.get_close_matches(path[-1], _known_keys(kind), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if close and close[0] == path[-1]:
            hint = "; it belongs to another kind of this section, see its name"
        return f"{where}: unknown key{hint}"
    if item["type"] == "union_tag_not_found":
        return f"{where}: 'name' is missing, which says what kind it is; found {_shortened(item['input'])}"
    if item["type"] == "missing":
        return f"{where}: {item['loc'][-1]!r} is missing"
    if item["type"] == "value_error":
        message = str(item["msg"]).removeprefix("Value error, ")
        return message if not path or message.startswith(where) else f"{where}: {message}"
    hint = "; a list or range is for `fedray compare`" if isinstance(item["input"], list | dict) else ""
    return f"{where}: {item['msg']}, found {_shortened(item['input'])}{hint}"


def real_path(raw: Any, location: Sequence[str | int]) -> Path:
    """The path in ``raw`` of an error's location, in which pydantic also names the branches of unions."""
    path: list[str] = []
    node: Any = raw
    for part in location:
        in_list = isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        if in_list or (isinstance(node, Mapping) and part in node):
            node = node[part]
            path.append(str(part))
    return tuple(path)


def _known_keys(kind: type[BaseModel]) -> set[str]:
    schema = kind.model_json_schema()
    sections = [schema, *schema.get("$defs", {}).values()]
    return {key for section in sections for key in section.get("properties", {})}


def _shortened(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
