"""Whose machine this is: the identity file that its administrator keeps on it. It must not import ray or torch.

Labels and resources are what a node's Ray says of itself, and come from whoever starts it: a start command that was
copied or a wrong node type is enough to claim another's. The file comes from whoever administers the machine. It is
no secret and no proof: root on a machine can write what it likes into it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fedray.errors import ResourcesError

NODE = "FEDRAY_NODE"
"""Names another file than the usual one; as the node's Ray processes have it, and with them all actors there."""
_USUAL = Path("/etc/fedray/owner.json")
_EXPECTED = "a file that names the owners of this machine, which only its administrator can change"


class _Identity(msgspec.Struct, frozen=True):
    owners: frozenset[str]


def identity_path() -> Path:
    """Where this machine's identity file is: ``$FEDRAY_NODE``, else ``/etc/fedray/owner.json``."""
    return Path(os.environ.get(NODE) or _USUAL)


def read_identity(path: Path) -> frozenset[str]:
    """Owners whose machine this is.

    Args:
        path: the file, JSON such as ``{"owners": ["hospital-a"]}``.

    Raises:
        ResourcesError: it is missing, cannot be read, or can be written by others than root and the user that this
            process runs as.
    """
    try:
        with path.open("rb") as file:
            _require_kept(path, os.fstat(file.fileno()))
            return msgspec.json.decode(file.read(), type=_Identity).owners
    except OSError as error:
        raise ResourcesError(
            f"no identity file {path} ({error.strerror})",
            _EXPECTED,
            "run `fedray cluster identify OWNER` as this machine's administrator",
        ) from None
    except msgspec.MsgspecError as error:
        raise ResourcesError(
            f"an identity file {path} that cannot be read ({error})",
            '{"owners": ["hospital-a"]}',
            "delete it, and run `fedray cluster identify OWNER` as this machine's administrator",
        ) from None


def require_identity(owner: str, path: Path) -> None:
    """Refuse to be this owner, or key holder, on a machine that is not its own.

    Raises:
        ResourcesError: the identity file does not name it, or there is none to be trusted.
    """
    owners = read_identity(path)
    if owner not in owners:
        raise ResourcesError(
            f"an identity file {path} of {', '.join(sorted(owners)) or 'nobody'}",
            f"one that names {owner!r}",
            f"correct the labels of this node; or, if it is {owner}'s, run `fedray cluster identify` there",
        )


def write_identity(owners: Iterable[str], path: Path) -> frozenset[str]:
    """Add owners to an identity file, readable by all and writable by its user alone; in one step.

    Args:
        owners: names, as in the data.
        path: the file; made if it is not there.

    Returns:
        All owners that the file names now.

    Raises:
        ResourcesError: it cannot be written, or what is there is not to be trusted.
    """
    named = frozenset(owners) | (read_identity(path) if path.exists() else frozenset())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, msgspec.json.encode({"owners": sorted(named)}) + b"\n")
    except OSError as error:
        raise ResourcesError(
            f"an identity file {path} that cannot be written ({error.strerror})",
            "a folder that you may write to",
            "run it as root, or name another file with --file and in FEDRAY_NODE of the node's Ray",
        ) from None
    return named


def _require_kept(path: Path, found: os.stat_result) -> None:
    """Refuse a file that somebody else could have written.

    Raises:
        ResourcesError: its mode or its user allows that.
    """
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid not in (0, os.geteuid()):
        raise ResourcesError(
            f"an identity file {path} that others may write to (mode {stat.filemode(found.st_mode)}, user "
            f"{found.st_uid})",
            _EXPECTED,
            f"run `chown root {path} && chmod 644 {path}`",
        )


def _write(path: Path, content: bytes) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise
