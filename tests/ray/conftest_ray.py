"""A Ray instance of the tests' own: own temp dir, own ports, shut down from here."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def own_ray(num_cpus: int, **options: object) -> Iterator[Path]:
    """Start Ray with so many logical CPUs; yields its temp dir, which must be short for its sockets."""
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            object_store_memory=200_000_000,
            **options,
        )
        try:
            yield Path(folder)
        finally:
            ray.shutdown()
