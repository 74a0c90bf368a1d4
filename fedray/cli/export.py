"""``fedray export``: runs told to TensorBoard and MLflow, from their records."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from fedray.cli.screen import console
from fedray.errors import ConfigError, RecordsError


def export(
    directories: Annotated[list[Path], typer.Argument(help="Directories of runs or comparisons, or record files.")],
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where TensorBoard looks; each run gets a folder there.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's tracking server, or e.g. `sqlite:///mlflow.db`.")
    ] = None,
) -> None:
    """Tell runs to TensorBoard, to MLflow or to both, from their records.

    Scalars a round, the experiment as parameters, for MLflow also its files. A run that is exported again is brought up
    to date where it is, and not doubled.
    """
    if tensorboard is None and mlflow is None:
        raise typer.BadParameter("say where to: --tensorboard DIR, --mlflow URI or both")
    targets: list[Callable[[Any], str]] = []
    if tensorboard is not None:
        to_tensorboard = _tool("to_tensorboard", "tensorboard")
        targets.append(lambda run: f"tensorboard {to_tensorboard.export(run, tensorboard)}")
    if mlflow is not None:
        to_mlflow = _tool("to_mlflow", "mlflow")
        targets.append(lambda run: f"mlflow      {run.experiment}/{to_mlflow.export(run, mlflow)}")
    for run in _find(directories):
        console.print(Text(f"{run.records.label}: {len(run.records.rounds)} rounds", style="bold"))
        for tell in targets:
            console.print(f"  {tell(run)}", highlight=False, markup=False, soft_wrap=True)


def _tool(module: str, extra: str) -> Any:
    """What tells runs to a tool.

    Raises:
        ConfigError: its library is not installed.
    """
    try:
        return import_module(f"fedray.exporting.{module}")
    except ImportError:
        raise ConfigError(
            f"--{extra}, but {extra} is not installed", f"the extra {extra!r}", f"pip install 'fedray[{extra}]'"
        ) from None


def _find(directories: list[Path]) -> list[Any]:
    from fedray.exporting.runs import find

    missing = [path for path in directories if not path.exists()]
    if missing:
        raise RecordsError(f"{missing[0]} does not exist", "a run directory or a record file", "check the path")
    return [run for path in directories for run in find(path)]
