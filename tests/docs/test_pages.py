"""README and docs say what works: links lead somewhere, examples run, commands exist, figures are those of the code.

Python blocks of a page share their names and run in process, with few rounds. A block after the comment
``<!-- test: skip because REASON -->`` is left out. ``docs/data.md`` has a test of its own beside the data layer.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

import fedray
from fedray import build, cli, records, rounds, running, tune
from fedray.actors import calls
from fedray.config import Experiment, replaced
from fedray.config.data import Tables
from fedray.config.learning import Ckks, CustomModel, Masked, Protection
from fedray.config.space import separate
from fedray.mpc.local import LocalParties
from fedray.protection import fixed_point, wire
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import parameters
from fedray.protection.masked import graph, masks, messages, shamir
from fedray.report.comparison import as_rows, compare
from fedray.values import Outcome
from fedray.vertical import config as vertical

ROOT = Path(__file__).parents[2]
PAGES = {str(page.relative_to(ROOT)): page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
OURS = [name for name in PAGES if name not in ("docs/data.md", "docs/figures.md")]
FENCE = re.compile(r"(?:<!-- test: skip because (.+?) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NO_MODULE = {"fedray.owner", "fedray.node"}
"""Node labels, which look like modules."""


def text_of(name: str) -> str:
    return PAGES[name].read_text()


def blocks(name: str, language: str) -> list[str]:
    return [body for skip, found, body in FENCE.findall(text_of(name)) if found == language and not skip]


def prose(name: str) -> str:
    return FENCE.sub("", text_of(name))


def pages_with(language: str) -> list[str]:
    return [name for name in OURS if blocks(name, language)]


@cache
def anchors(name: str) -> frozenset[str]:
    """Headings as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(name)), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(slugs) == len(set(slugs)), f"two headings of one name in {name}"
    return frozenset(slugs)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere_inside_the_repository(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert place.is_relative_to(ROOT), target
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(str(place.relative_to(ROOT))), target


@pytest.mark.parametrize("name", PAGES)
def test_every_path_in_the_text_exists_and_none_is_of_one_machine(name: str) -> None:
    found = re.findall(r"`((?:fedray|actors|strategies|scripts|docs|tests)/[\w./-]*)`", text_of(name))
    assert [path for path in found if not (ROOT / path).exists()] == []
    assert re.findall(r"(?<![\w.])/(?:work|tmp|home|root|Users)\b\S*", text_of(name)) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_name_of_fedray_resolves(name: str) -> None:
    for dotted in set(re.findall(r"(?<![\w/.`-])`?(fedray(?:\.[A-Za-z_]\w*)+)\b(?!\.)", text_of(name))) - NO_MODULE:
        thing: Any = fedray
        for part in dotted.split(".")[1:]:
            path = f"{thing.__name__}.{part}"
            is_module = inspect.ismodule(thing) and not hasattr(thing, part)
            thing = importlib.import_module(path) if is_module else getattr(thing, part)


@cache
def all_tests() -> dict[str, bool]:
    """Name of every test in the tree, and whether it is marked as one that fails."""
    found = {}
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(map(ast.unparse, node.decorator_list))
                found[node.name] = "xfail" in marks or "known_defect" in marks
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_test_in_the_text_exists_and_fails_only_as_a_known_gap(name: str) -> None:
    """A test that is marked as failing stands under "Known gaps", and nowhere else; one that was mended does not."""
    for part in re.split(r"^(?=#+ )", text_of(name), flags=re.MULTILINE):
        named = set(re.findall(r"`(?:[\w./]+::)?(test_\w+)`", part))
        assert sorted(named - set(all_tests())) == []
        is_gap = part.startswith("### Known gaps")
        assert sorted(one for one in named if all_tests()[one] != is_gap) == [], "a gap" if is_gap else "no gap"


def test_every_claim_of_the_threat_model_names_a_test() -> None:
    """Whatever stands in a table with the heading "checked by" is checked by something."""
    tables = re.findall(
        r"^\|[^\n]*\| checked by \|\n\|[-|]+\n((?:\|.*\n)+)", text_of("docs/threat-model.md"), re.MULTILINE
    )
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"`test_\w+`", row.rstrip(" |").rpartition("|")[2])] == []


@pytest.mark.parametrize("name", pages_with("yaml"))
def test_yaml_blocks_are_experiments_or_search_spaces(name: str) -> None:
    for block in blocks(name, "yaml"):
        if (raw := yaml.safe_load(block)).get("kind") == "vertical":
            assert vertical.load(raw, {}).kind == "vertical"
            continue
        for experiment in separate(yaml.safe_load(block)).experiments():
            if not isinstance(experiment.data, Tables) and not isinstance(experiment.model, CustomModel):
                build.check(experiment)


class Stage:
    """Stands in for ``run`` and ``compare``: in process, two rounds, one point of a space."""

    def __init__(self) -> None:
        self._numbers = count()

    def run(self, experiment: Experiment, directory: Any = None, **options: Any) -> running.Run:
        inspect.signature(running.run).bind(experiment, directory, **options)
        short = replaced(experiment, {"rounds": min(2, experiment.rounds)})
        return running.run(short, directory or f"runs/{next(self._numbers)}", in_process=True)

    def compare(self, experiment: Experiment, *args: Any, **options: Any) -> tune.Comparison:
        space = inspect.signature(tune.compare).bind(experiment, *args, **options).arguments["space"]
        points = separate(tune.override(tune.as_raw(experiment), space)).experiments()
        assert len(points) > 1
        run = self.run(points[0])
        require_learned(run)
        return tune.Comparison(run.directory, tuple(records.find_runs(run.directory)), 0)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fedray, "run", stage.run, raising=False)
    monkeypatch.setattr(fedray, "compare", stage.compare, raising=False)
    monkeypatch.setattr(fedray, "Parties", LocalParties, raising=False)
    return stage


def require_learned(run: running.Run) -> None:
    """Every round opened a sum: an example that learns nothing is none."""
    assert [record.sum.outcome for record in run] == ["opened"] * run.experiment.rounds


@pytest.mark.parametrize("name", pages_with("python"))
def test_python_blocks_run(name: str, stage: Stage) -> None:
    frame = pd.DataFrame({"age": range(60), "dose": 1.0, "site": ["n", "s", "w"] * 20, "ill": [0, 0, 1, 1] * 15})
    names: dict[str, Any] = {"frame": frame, "__name__": "page"}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), names)
        if "fedray.run" not in block and isinstance(experiment := names.get("experiment"), Experiment):
            require_learned(stage.run(experiment))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments that pages name, as files under their names; keys are enrolled beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRAY_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    for name in OURS:
        for block in blocks(name, "yaml"):
            if "name" in (raw := yaml.safe_load(block)):
                Path(f"{raw['name']}.yaml").write_text(block)


def shell_lines(name: str) -> Iterator[list[str]]:
    for line in "".join(blocks(name, "bash")).splitlines():
        if words := shlex.split(line, comments=True):
            yield words[: words.index(">")] if ">" in words else words


def parsed(words: list[str]) -> Mapping[str, Any]:
    """A command's parameters; raises a usage error where the command or an option does not exist."""
    group: Any = typer.main.get_command(cli.app)
    with group.commands[words[0]].make_context(words[0], words[1:]) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", pages_with("bash"))
def test_commands_exist_with_their_options_and_cheap_ones_run(name: str, files: None) -> None:
    for first, *words in shell_lines(name):
        if first.startswith("scripts/"):
            assert (ROOT / first).stat().st_mode & 0o111, first
        elif first == ".venv/bin/python":
            assert (ROOT / words[0]).is_file(), words
        elif first == "ray":
            from ray.scripts.scripts import cli as ray_cli

            ray_cli.commands[words[0]].make_context(words[0], words[1:]).close()
        else:
            assert first == "fedray"
            check_command(words, parsed(words))


def check_command(words: list[str], parameters: Mapping[str, Any]) -> None:
    if words[0] == "compare":
        if parameters["experiment"]:
            assert separate(yaml.safe_load(parameters["experiment"].read_text())).experiments()
    elif not parameters.get("address"):
        is_vertical = "kind: vertical" in Path(words[1]).read_text() if words[0] == "run" else False
        short = "train.epochs=1" if is_vertical else "rounds=1"
        cheap = ["--in-process", "--set", short] if words[0] == "run" else []
        result = CliRunner().invoke(cli.app, [*words, *cheap])
        assert result.exit_code == 0, (words, result.output, result.exception)


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_the_text_exist_with_their_options(name: str) -> None:
    group: Any = typer.main.get_command(cli.app)
    for span in re.findall(r"`fedray ([^`]+)`", prose(name)):
        words = span.replace("|", " ").split()
        command = group.commands[words[0]]
        command = getattr(command, "commands", {}).get("".join(words[1:2]), command)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, span


def test_the_reference_is_what_the_code_says() -> None:
    specification = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert specification
    assert specification.loader
    reference = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reference)
    text = text_of("docs/configuration.md")
    assert reference.page(text) == text, "stale: run scripts/docs"
    written = re.findall(r"^\| `(\w+)` \|", reference.reference(), re.MULTILINE)
    assert set(Experiment.model_fields) <= set(written)


def test_the_table_of_the_readme_has_the_columns_that_are_printed(tmp_path: Path) -> None:
    experiment = Experiment(rounds=1, data={"name": "digits", "owners": 3, "split": "iid"})
    list(running.run(experiment, tmp_path / "run", in_process=True))
    rows = as_rows(compare(records.find_runs(tmp_path / "run")))
    table = blocks("README.md", "text")[0]
    assert table.split("\n")[0].split() == [key for key in rows[0] if key != "strategy"]


def test_constants_in_the_text_are_those_of_the_code() -> None:
    concepts = text_of("docs/concepts.md")
    assert rounds.PATIENCE == 3
    assert "After three rounds in a row" in concepts
    assert f"and {calls.GRACE_S:g} s of grace" in concepts
    for file in (records.STREAM, records.PARQUET, running.MODEL):
        assert file in concepts


def test_the_fixed_point_in_the_text_is_that_of_the_code() -> None:
    default = Masked()
    assert (default.clip, default.precision, default.min_owners) == (8, 1e-5, 3)
    point = FixedPoint(10, 2047, default.clip, default.precision)
    assert (point.step, point.value_bound, point.ring.__name__) == (2**-17, 2**20, "uint32")
    with pytest.raises(fedray.errors.ConfigError):
        FixedPoint(10, 2048, default.clip, default.precision)
    narrow = [FixedPoint(10, n, 0.25, 2e-4) for n in (15, 16)]
    assert [(one.step, one.value_bound, one.ring.__name__) for one in narrow] == [
        (2**-13, 2048, "uint16"),
        (2**-13, 2048, "uint32"),
    ]
    assert (fixed_point.WEIGHT_BOUND, fixed_point.PIECE) == (2**24, 2**15)
    for page in ("docs/concepts.md", "docs/aggregation.md"):
        for row in ("| `protection.clip` | 8 |", "| `protection.precision` | 1e-5 |", "2^-17", "2,047 owners", "2^24"):
            assert row in text_of(page), (page, row)


def test_constants_of_the_protocols_in_the_text_are_those_of_the_code() -> None:
    page = text_of("docs/aggregation.md")
    assert (masks.KEY_BITS, shamir.PRIME, shamir.SHARE_BYTES, messages.SEALED_BYTES) == (128, 2**256 + 297, 33, 82)
    assert "modulo 2^256 + 297, shares of 33 bytes" in page
    assert "82 bytes" in page
    assert (graph.FULL_UP_TO, graph.SECURITY_BITS, graph.CORRECTNESS_BITS) == (50, 40, 30)
    for n in (10, 50, 100, 1000):
        found = graph.Rules().graph(bytes(16), 1, [str(number) for number in range(n)])
        assert f"| {n:,} | {found.degree} | {found.threshold} |" in page
    assert len(wire._PREFIX) == 7
    assert Experiment().resources.answer_timeout_s == 60
    assert Ckks().key_rounds == 100


def test_the_parameters_of_homomorphic_sums_in_the_text_are_those_of_the_code() -> None:
    for n in (5, 10, 100, 1000):
        point = FixedPoint(parameters.POLY_DEGREE, n, Ckks().clip, Ckks().precision)
        cells = []
        for scheme in ("bfv", "ckks"):
            chosen = parameters.choose(scheme, point)
            a_value = 2 * chosen.poly_degree * chosen.word_bytes / chosen.n_slots
            cells.append(f"{chosen.coefficient_bits[0]} bits, {a_value:g}, {chosen.security_bits} bits")
        assert f"| {n:,} | {' | '.join(cells)} |" in text_of("docs/aggregation.md")
    assert (parameters.POLY_DEGREE, parameters.SPECIAL_BITS) == (4096, 18)
    assert parameters.DATA_BITS == (32, 40, 48, 54)


def test_every_outcome_and_exit_code_is_explained() -> None:
    outcomes = [name for literal in get_args(Outcome) for name in get_args(literal)]
    assert {"update", "exhausted"} < set(outcomes)
    assert all(f"| `{outcome}` |" in text_of("docs/concepts.md") for outcome in outcomes)
    codes = {error.exit_code for error in vars(fedray.errors).values() if inspect.isclass(error)}
    listed = re.search(r"Exit codes: (.+?)\.\n", text_of("README.md"), re.DOTALL)
    assert listed
    assert codes | {0, 130} == {int(code) for code in re.findall(r"\b\d+\b", listed[1])}


@pytest.mark.parametrize("name", ["README.md", "docs/aggregation.md", "docs/threat-model.md", "docs/concepts.md"])
def test_protections_in_the_text_are_all_that_there_are(name: str) -> None:
    kinds = {kind.model_fields["name"].default for kind in get_args(get_args(Protection)[0])}
    assert kinds == {"plain", "masked", "ckks", "bfv"}, "say so in README and docs"
    assert all(re.search(rf"`(?:protection: )?{kind}`", text_of(name)) for kind in kinds)
    assert Experiment().protection.name == "masked"
