"""One validated object says all that a run needs. See ``Experiment``."""

from fedray.config.cluster import Placement
from fedray.config.experiment import Experiment
from fedray.config.loading import as_yaml, json_schema, load, replaced, validated

__all__ = ["Experiment", "Placement", "as_yaml", "json_schema", "load", "replaced", "validated"]
