"""A party's weights as a file on its own node."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from safetensors.torch import save
from torch import nn

from fedray.errors import ConfigError
from fedray.files import put


def save_module(module: nn.Module, folder: str | Path, name: str) -> None:
    """Write all parameters and buffers to ``NAME.safetensors``, for the party's user alone.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(folder) / f"{quote(name, safe='')}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, save({key: value.contiguous() for key, value in module.state_dict().items()}))
    except OSError as error:
        raise ConfigError(
            f"weights of {name!r} that cannot be written to {folder} ({error.strerror})",
            "a folder on this party's node that it may write to",
            "name another",
        ) from None
