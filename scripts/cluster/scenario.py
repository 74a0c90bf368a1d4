"""A cluster's life, step by step: launched, used, hit by a power cut, ended. Every step says what must come of it.

Run by ``operator.sh`` and nothing else: the hosts are namespaces on a network of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROOM = Path(os.environ["ROOM"])
OWNERS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
ADDRESSES = {name: f"10.77.0.{10 + place}" for place, name in enumerate(("head", *OWNERS))}
FEATURES = ("age", "pressure", "cholesterol")
CLUSTER = Path.home() / "cluster.yaml"
EXPERIMENTS = Path.home() / "experiments"
HOSPITALS = EXPERIMENTS / "hospitals.yaml"
COMPARISON = EXPERIMENTS / "comparison.yaml"
BEGUN = time.monotonic()
_CHATTER = re.compile(
    r"\bVV?INFO\b|^Shared connection|^sending incremental|^sent \d|^total size|Permanently added|ulimit"
)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


def say(text: str) -> None:
    """A line of the log."""
    print(f"[{time.monotonic() - BEGUN:6.1f} s] {text}", flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """One step, and how long it took."""
    say(title)
    begun = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - begun:.1f} s")


def require(holds: bool, claim: str) -> None:
    """Note what was found to be so; a launch in which it is not so has failed."""
    say(f"  {'checked' if holds else 'NOT SO'}: {claim}")
    if not holds:
        sys.exit(1)


def run(*command: str) -> str:
    """What a command prints, which is also shown."""
    say(f"  $ {' '.join(Path(word).name if word == str(CLUSTER) else word for word in command)}")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout
    shown = []
    for line in child.stdout:
        shown.append(line)
        quote([line])
    if child.wait():
        say(f"  NOT SO: it ended with {child.returncode}")
        sys.exit(1)
    return "".join(shown)


def quote(lines: Sequence[str]) -> None:
    """What a command printed, without colours and Ray's stamps of where a line comes from."""
    for line in filter(lambda line: line.strip() and not _CHATTER.search(line), lines):
        plain = re.sub(
            r"^\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|WARN\w*|ERROR|PANIC) \w+\.py:\d+ -- ", "", _COLOURS.sub("", line)
        )
        print(f"             | {plain}".rstrip(), flush=True)


def on(host: str, command: str) -> str:
    """What a command prints on a host; by the operator's ssh, not by Ray."""
    options = ["-q", "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=5"]
    ssh = ["ssh", *options, f"root@{ADDRESSES[host]}", command]
    return subprocess.run(ssh, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def until(holds: Callable[[], bool], timeout_s: float = 300.0) -> float:
    """Wait for something; seconds that it took."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > timeout_s:
            require(False, f"it came within {timeout_s:g} s")
        time.sleep(0.2)
    return time.monotonic() - begun


def power(switch: str, host: str) -> None:
    """Switch a host on, or cut its power."""
    subprocess.run([CHECKOUT / "scripts/cluster/power.sh", switch, host, ADDRESSES[host]], check=True)
    if switch == "on":
        until(lambda: on(host, "hostname") == host)


def write_rows(owner: str, seed: int) -> None:
    """An owner's rows, on its own disk: 300 people whose illness depends on three made-up figures."""
    draws = np.random.default_rng(seed)
    figures = draws.normal(size=(300, len(FEATURES)))
    ill = (figures @ [1.0, 2.0, -1.0] + draws.normal(size=300) > 0).astype(int)
    table = "\n".join(
        ",".join([*(f"{value:.4f}" for value in row), str(label)]) for row, label in zip(figures, ill, strict=True)
    )
    folder = ROOM / owner / "srv" / "hospital"
    folder.mkdir(parents=True)
    (folder / f"{owner}.csv").write_text(",".join((*FEATURES, "ill")) + "\n" + table + "\n")


def experiment(name: str, rounds: int, **more: Any) -> dict[str, Any]:
    """The hospitals' experiment: every owner pinned by label and resource, and the server to the head."""
    return {
        "name": name,
        "rounds": rounds,
        "data": {
            "name": "tables",
            "path": "/srv/hospital",
            "owners": list(OWNERS),
            "features": list(FEATURES),
            "target": "ill",
            "classes": [0, 1],
        },
        "model": "logistic",
        "privacy": {"name": "example", "noise_multiplier": 1.0},
        "protection": {"name": "masked", "min_owners": 3},
        "resources": {
            "owner_cpus": 0.5,
            "server": {"labels": {"fedray.node": "server"}},
            "answer_timeout_s": 20,
        },
        "placement": {
            owner: {"labels": {"fedray.owner": owner}, "resources": {f"owner:{owner}": 0.1}} for owner in OWNERS
        },
        **more,
    }


def write_files() -> None:
    """The experiments, and clusters/local.yaml with nothing changed but addresses, user and one more mount."""
    EXPERIMENTS.mkdir()
    HOSPITALS.write_text(yaml.safe_dump(experiment("hospitals", 5), sort_keys=False))
    both = experiment("comparison", 3, strategy=["fedavg", {"name": "fedprox", "mu": 0.1}])
    COMPARISON.write_text(yaml.safe_dump(both, sort_keys=False))
    raw = yaml.safe_load((CHECKOUT / "clusters/local.yaml").read_text())
    raw["provider"] |= {"head_ip": ADDRESSES["head"], "worker_ips": [ADDRESSES[owner] for owner in OWNERS]}
    raw["auth"] |= {"ssh_user": "root"}
    raw["file_mounts"] |= {"/srv/experiments": str(EXPERIMENTS)}
    CLUSTER.write_text(yaml.safe_dump(raw, sort_keys=False))


def rounds(directory: str) -> list[dict[str, Any]]:
    """Rounds recorded on the head so far."""
    from fedray.errors import RecordsError
    from fedray.records import read_run

    try:
        found = read_run(ROOM / "head" / "srv" / "runs" / directory).rounds
    except (RecordsError, OSError):
        return []
    return [{"round": one.round, "n_updates": one.n_updates, "outcome": one.sum.outcome} for one in found]


def launch() -> None:
    """Hosts are switched on; the cluster's file is checked; all owners join."""
    with step("Switch on a head and four hospitals; each has its own disk and says itself whose it is"):
        for host in ADDRESSES:
            power("on", host)
        for seed, owner in enumerate(OWNERS):
            write_rows(owner, seed)
        write_files()
        for host in ADDRESSES:
            own = [name for name in OWNERS if on(host, f"test -e /srv/hospital/{name}.csv && echo there")]
            require(own == [name for name in OWNERS if name == host], f"{host} has the rows of {own or 'nobody'}")
    with step("Check the cluster's file, with the experiment"):
        run("fedray", "cluster", "check", str(CLUSTER), str(HOSPITALS))
    with step("Launch the cluster"):
        shown = run("fedray", "cluster", "up", str(CLUSTER), str(HOSPITALS), "--timeout-s", "600")
        require("made the cluster's token" in shown, "the token was made")
        require(all(name in shown for name in OWNERS), "all four hospitals joined, the last one too")
        modes = {host: on(host, "stat -c %a ~/.ray/auth_token") for host in ADDRESSES}
        require(set(modes.values()) == {"600"}, f"every host has the token, for its user alone: {modes}")


def look() -> None:
    """The cluster is asked what it has; whoever has no token is refused."""
    with step("Ask the cluster who can be placed"):
        run("ray", "exec", str(CLUSTER), "fedray doctor /srv/experiments/hospitals.yaml --address auto")
    with step("Connect without the token, and with another one"):
        none = on("head", "bash -ic 'HOME=/tmp/stranger fedray cluster nodes' 2>&1")
        require("the cluster's token is not here" in none, "without a token Ray does not even try")
        folder = "/tmp/stranger/.ray"
        make = f"mkdir -p {folder}; head -c 32 /dev/urandom | sha256sum | cut -c-64 > {folder}/auth_token"
        other = on("head", f"{make}; bash -ic 'HOME=/tmp/stranger timeout 200 fedray cluster nodes' 2>&1")
        quote(other.splitlines()[-3:])
        require("no Ray cluster answers here" in other, "with another token the cluster refuses")


def use() -> None:
    """A run by a job, a comparison by a command."""
    with step("Run one federation as a Ray job"):
        job = "fedray run /srv/experiments/hospitals.yaml --out /srv/runs/first --address auto"
        shown = run("ray", "exec", str(CLUSTER), f"ray job submit --address http://127.0.0.1:8265 -- {job}")
        require("succeeded" in shown, "the job succeeded")
        require([one["n_updates"] for one in rounds("first")] == [4] * 5, "five rounds of four updates are on record")
        for owner in OWNERS:
            kept = on(owner, "find /srv/runs/first -type f").split()
            require(any("ledger" in name for name in kept), f"{owner} has its ledger on its own disk")
        ledgers = on("head", "find /srv/runs/first -name '*ledger*'").split()
        require(not ledgers, "the head has no owner's ledger")
    with step("Compare two strategies with Ray Tune, owners pinned in every trial"):
        run(
            "ray",
            "exec",
            str(CLUSTER),
            "fedray compare /srv/experiments/comparison.yaml --out /srv/runs/compared --address auto",
        )
        trials = list((ROOM / "head/srv/runs/compared/trials").glob("*.parquet"))
        require(len(trials) == 2, "two trials are on record")


def survive() -> None:
    """A hospital loses its power in the middle of a run, and comes back."""
    with step("Cut hospital-b's power in the middle of a run, and switch it on again"):
        command = (
            "fedray run /srv/experiments/hospitals.yaml --out /srv/runs/cut --address auto "
            "--set name=cut --set rounds=5000 --set resources.answer_timeout_s=3; echo ended with $?"
        )
        output = ROOM / "output"
        with output.open("w") as file:
            job = subprocess.Popen(["ray", "exec", str(CLUSTER), command], stdout=file, stderr=subprocess.STDOUT)
        until(lambda: len(rounds("cut")) >= 5)
        power("cut", "hospital-b")
        say(f"  power cut after round {len(rounds('cut'))}")
        before = len(rounds("cut"))
        seconds = until(lambda: len(rounds("cut")) >= before + 3 and rounds("cut")[-1]["n_updates"] == 3)
        say(f"  three more rounds {seconds:.1f} s later, with three hospitals")
        power("on", "hospital-b")
        seconds = until(lambda: rounds("cut")[-1]["n_updates"] == 4, 600)
        say(f"  hospital-b takes part again {seconds:.1f} s after it was switched on, in round {len(rounds('cut'))}")
        until(lambda: [one["n_updates"] for one in rounds("cut")[-3:]] == [4, 4, 4])
        on("head", "kill -INT $(pgrep -f '[b]in/fedray run')")
        job.wait(300)
        shown = output.read_text()
        quote(shown.splitlines()[-4:])
        found = [one["n_updates"] for one in rounds("cut")]
        require("ended with 130" in shown, f"the run ends by Ctrl-C, with {len(found)} rounds on record")
        require(
            set(found) <= {0, 3, 4}, f"{found.count(4)} with four updates, {found.count(3)} with three, the rest none"
        )
    with step("Look for hospital-b's rows on every disk and in everything that Ray wrote"):
        row = (ROOM / "hospital-b/srv/hospital/hospital-b.csv").read_text().splitlines()[1]
        holders = [host for host in ADDRESSES if on(host, f"grep -rlF -- {row} /srv /tmp /dev/shm 2>/dev/null")]
        require(holders == ["hospital-b"], f"its first row is found on {' and '.join(holders)} alone")
    with step("Compare what hospital-b's ledger says with what is on record"):
        require_charged("cut", sum(one["n_updates"] == 4 for one in rounds("cut")))


def require_charged(directory: str, released: int) -> None:
    """The ledger of whoever lost its power holds at least the rounds that its updates entered."""
    text = on("hospital-b", f"cat $(find /srv/runs/{directory} -name '*ledger*' -type f)")
    charges = text.count('"kind":"charge"')
    require(charges >= released, f"{charges} charges on its disk, {released} rounds with its update")


def end() -> None:
    """The cluster is ended, on every host."""
    with step("End the cluster"):
        run("fedray", "cluster", "down", str(CLUSTER))
        for host in ADDRESSES:
            left = on(host, "pgrep -c raylet || true")
            require(left == "0", f"no Ray is left on {host}")


if __name__ == "__main__":
    os.environ["TERM"] = "dumb"  # lines, and no pictures that move
    launch()
    look()
    use()
    survive()
    end()
    say(json.dumps({"launch": "complete"}))
