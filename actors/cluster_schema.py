"""Ray's own validation of a launcher's file. Needs neither a cloud's library nor a network."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from click import ClickException
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config


def complaint(raw: dict[str, Any]) -> str | None:
    """What Ray has against a file for ``ray up``; None if nothing.

    It knows no instance types, images and regions: what is in ``node_config`` is the cloud's business.
    """
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            validate_config(prepare_config(raw))
    except ValidationError as error:
        return f"{error.json_path.removeprefix('$.')}: {error.message}"
    except ClickException as error:
        return printed.getvalue().strip().rpartition("-- ")[2] or error.format_message()
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return None
