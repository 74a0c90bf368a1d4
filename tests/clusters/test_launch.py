"""The launch in network namespaces, for real. Takes minutes and root: only where FEDRAY_LAUNCH=1 asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin"
MISSING = [tool for tool in ("ip", "sshd", "rsync", "unshare") if not shutil.which(tool, path=PATH)]


@pytest.mark.skipif(os.environ.get("FEDRAY_LAUNCH") != "1", reason="takes minutes: set FEDRAY_LAUNCH=1")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, for which it needs root")
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.timeout(1200)
def test_a_cluster_is_launched_used_hit_by_a_power_cut_and_ended(tmp_path: Path) -> None:
    log = tmp_path / "launch.log"
    done = subprocess.run([ROOT / "scripts/cluster/launch", log], capture_output=True, text=True, check=False)
    text = log.read_text() if log.exists() else ""
    assert done.returncode == 0, done.stderr + text[-4000:]
    assert "NOT SO" not in text
    assert '{"launch": "complete"}' in text
