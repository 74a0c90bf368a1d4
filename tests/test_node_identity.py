"""Identity files: what they say, who may have written them, and how they are written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fedray import node_identity
from fedray.errors import ResourcesError
from fedray.node_identity import identity_path, read_identity, require_identity, write_identity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "owner.json"


def test_what_is_written_is_what_is_read_and_owners_are_added(path: Path) -> None:
    assert write_identity(["hospital-b"], path) == {"hospital-b"}
    assert write_identity(["hospital-a", "hospital-b"], path) == {"hospital-a", "hospital-b"}
    assert json.loads(path.read_text()) == {"owners": ["hospital-a", "hospital-b"]}
    assert read_identity(path) == {"hospital-a", "hospital-b"}
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_it_is_readable_by_all_and_writable_by_its_user_alone_whatever_the_umask(path: Path, umask: int) -> None:
    path.parent.mkdir()
    before = os.umask(umask)
    try:
        write_identity(["hospital-a"], path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_owner_that_it_names_is_accepted_and_another_is_not(path: Path) -> None:
    write_identity(["hospital-a"], path)
    require_identity("hospital-a", path)
    with pytest.raises(ResourcesError, match="of hospital-a") as refused:
        require_identity("hospital-b", path)
    assert "hospital-b" in refused.value.expected


@pytest.mark.parametrize(
    "content", ["", "hospital-a", "[]", "{}", '{"owners": "hospital-a"}', '{"owners": [1]}', '{"owners": null}', "\xff"]
)
def test_a_file_that_says_nothing_clear_names_nobody(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ResourcesError, match="cannot be read"):
        require_identity("hospital-a", path)


def test_no_file_and_a_folder_are_refused(path: Path) -> None:
    with pytest.raises(ResourcesError, match="no identity file") as refused:
        require_identity("hospital-a", path)
    assert "fedray cluster identify" in refused.value.remedy
    path.mkdir(parents=True)
    with pytest.raises(ResourcesError, match="no identity file"):
        require_identity("hospital-a", path)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620])
def test_a_file_that_others_may_write_is_not_to_be_trusted_and_nothing_is_added_to_it(path: Path, mode: int) -> None:
    write_identity(["hospital-a"], path)
    path.chmod(mode)
    with pytest.raises(ResourcesError, match="others may write"):
        require_identity("hospital-a", path)
    with pytest.raises(ResourcesError, match="others may write"):
        write_identity(["hospital-b"], path)
    assert json.loads(path.read_text()) == {"owners": ["hospital-a"]}


def test_a_file_of_a_user_who_is_neither_root_nor_this_one_is_not_to_be_trusted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity(["hospital-a"], path)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result((*real(handle)[:4], 54321, *real(handle)[5:])))
    with pytest.raises(ResourcesError, match="user 54321"):
        require_identity("hospital-a", path)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    require_identity("hospital-a", path)


def test_a_link_is_judged_by_the_file_that_it_leads_to(path: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts them."""
    target = tmp_path / "target.json"
    write_identity(["hospital-a"], target)
    path.parent.mkdir()
    path.symlink_to(target)
    require_identity("hospital-a", path)
    target.chmod(0o666)
    with pytest.raises(ResourcesError, match="others may write"):
        require_identity("hospital-a", path)


def test_a_writer_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_identity(["hospital-a"], path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourcesError, match="No space left"):
        write_identity(["hospital-b"], path)
    assert read_identity(path) == {"hospital-a"}
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourcesError, match="cannot be written") as refused:
        write_identity(["hospital-a"], tmp_path / "file" / "owner.json")
    assert "--file" in refused.value.remedy


def test_where_it_is_may_be_said_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(node_identity.NODE, raising=False)
    assert identity_path() == Path("/etc/fedray/owner.json")
    monkeypatch.setenv(node_identity.NODE, "/srv/node.json")
    assert identity_path() == Path("/srv/node.json")
