"""Rules on files of Ray's cluster launcher, beyond Ray's own schema, which says only that names and types are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedray.clusters.findings import Finding, error, mapping, note, strings, warning
from fedray.clusters.images import Versions, check_image, check_installs
from fedray.clusters.launcher import TOKEN, LauncherFile, is_ray_start, is_token, option
from fedray.clusters.node_types import check_node_types

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0/0", "::/0")


def check_launcher_file(file: LauncherFile, installed: Versions) -> Iterator[Finding]:
    """Everything that is wrong with a file, by rules of our own.

    Args:
        file: what to check; paths in it are taken from the folder that this process is in, as Ray takes them.
        installed: what Ray and Python all nodes must have.
    """
    for rule in (_head, _token, _token_rights, _secrets, _mounts, _network, _containers):
        yield from rule(file)
    yield from _versions(file, installed)
    yield from _setup(file)
    yield from check_node_types(file.node_types)
    if file.is_local:
        yield from _hosts(file)


def _head(file: LauncherFile) -> Iterator[Finding]:
    where = "head_start_ray_commands"
    starts = [command for command in file.head_start if is_ray_start(command)]
    if not starts:
        yield error(
            where,
            "Ray's own command, which on AWS opens the dashboard to everyone"
            if not file.head_start
            else "no ray start",
            "write the command out: ray start --head --dashboard-host=127.0.0.1 ...",
        )
    for command in starts:
        host = option(command, "dashboard-host")
        if host is not None and host not in _LOOPBACK:
            yield error(
                where,
                f"--dashboard-host={host}: whoever reaches the dashboard runs code on all nodes",
                "--dashboard-host=127.0.0.1, and `ray dashboard` to see it from elsewhere",
            )
        if option(command, "autoscaling-config") is None:
            yield error(
                where,
                "no --autoscaling-config: the head would start no other node",
                "add --autoscaling-config=~/ray_bootstrap_config.yaml",
            )


def _token(file: LauncherFile) -> Iterator[Finding]:
    by_container = any("RAY_AUTH_MODE=token" in item for item in _run_options(file))
    for where, commands in (
        ("head_start_ray_commands", file.head_start),
        ("worker_start_ray_commands", file.worker_start),
    ):
        starts = [command for command in commands if is_ray_start(command)]
        if not by_container and not all("RAY_AUTH_MODE=token" in command for command in starts):
            yield error(
                where,
                "token authentication is not switched on, or only by what Ray finds in its folder",
                "RAY_AUTH_MODE=token before ray start, or by docker.run_options",
            )
    if not file.mounts_token:
        yield error(
            "file_mounts",
            "nodes do not get the cluster's token: they could not join",
            f'add "~/.ray/auth_token": "{TOKEN}", with the container\'s home where there are containers',
        )


def _secrets(file: LauncherFile) -> Iterator[Finding]:
    if re.search(r"RAY_AUTH_TOKEN=\S|'RAY_AUTH_TOKEN': '\S", str(file.raw)):
        yield error("RAY_AUTH_TOKEN", "the cluster's secret is written into the file", f"mount {TOKEN} instead")


def _mounts(file: LauncherFile) -> Iterator[Finding]:
    for target, source in mapping(file.raw.get("file_mounts")).items():
        if Path(str(source)).expanduser().exists():
            continue
        if str(source) == TOKEN:
            yield note(f"file_mounts.{target}", f"{source} does not exist", "`fedray cluster up` makes it")
        else:
            yield error(f"file_mounts.{target}", f"{source} does not exist in {Path.cwd()}", "correct it, or run there")


def _token_rights(file: LauncherFile) -> Iterator[Finding]:
    sources = [str(source) for target, source in mapping(file.raw.get("file_mounts")).items() if is_token(target)]
    for path in (Path(source).expanduser() for source in sources):
        if path.exists() and path.stat().st_mode & 0o077:
            yield warning(
                "file_mounts",
                f"other users of this machine may read {path}, and those of every node",
                f"chmod 600 {path}",
            )


def _network(file: LauncherFile) -> Iterator[Finding]:
    group = mapping(mapping(file.raw.get("provider")).get("security_group"))
    rules = group.get("IpPermissions")
    for rule in map(mapping, rules if isinstance(rules, list) else []):
        ranges = [*map(mapping, rule.get("IpRanges") or []), *map(mapping, rule.get("Ipv6Ranges") or [])]
        is_open = any(one.get("CidrIp", one.get("CidrIpv6")) in _EVERYWHERE for one in ranges)
        if is_open and (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield error(
                "provider.security_group",
                f"ports {rule.get('FromPort')} to {rule.get('ToPort')} are open to everyone",
                "name the addresses that may reach them, or leave the rule out and use ssh",
            )
    head = mapping(file.types.get(str(file.raw.get("head_node_type")), {}).get("node_config"))
    if file.provider == "aws" and "SecurityGroupIds" not in head:
        yield note(
            "provider.security_group",
            "Ray opens port 22 to everyone who has the key",
            "to narrow that, name a group of your own by SecurityGroupIds in each node_config",
        )


def _containers(file: LauncherFile) -> Iterator[Finding]:
    if file.raw.get("docker") and not any("--shm-size" in item for item in _run_options(file)):
        yield warning(
            "docker.run_options", "no --shm-size: the object store would spill to the disk", "add --shm-size=4g"
        )


def _run_options(file: LauncherFile) -> list[str]:
    return strings(mapping(file.raw.get("docker")).get("run_options"))


def _versions(file: LauncherFile, installed: Versions) -> Iterator[Finding]:
    images = dict.fromkeys(image for name in file.types if (image := file.image_of(name)))
    for image in images:
        yield from check_image("docker", image, installed)
    commands = dict.fromkeys(command for name in file.types for command in file.setup_of(name))
    yield from check_installs("setup_commands", list(commands), installed)


def _setup(file: LauncherFile) -> Iterator[Finding]:
    """In a cloud a node is bare: it must be told to install fedray, and whose it is."""
    owners = {one.where: one.owner for one in file.node_types}
    for name in file.types:
        where = f"available_node_types.{name}"
        commands = file.setup_of(name)
        if not any(re.search(r"\binstall\b.*fedray", command) for command in commands):
            yield error(where, "no command installs fedray", "its worker_setup_commands take the place of all others")
        if owner := owners[where]:
            yield from _identity(where, owner, commands)


def _identity(where: str, owner: str, commands: list[str]) -> Iterator[Finding]:
    written = [found[1] for command in commands if (found := re.search(r"\bidentify\s+(\S+)", command))]
    if written != [owner]:
        yield error(
            f"{where}.worker_setup_commands",
            f"the node's identity file would name {' and '.join(written)}"
            if written
            else "no identity file is written",
            f"add the command: sudo $(which fedray) cluster identify {owner}",
        )


def _hosts(file: LauncherFile) -> Iterator[Finding]:
    starts = [command for command in file.worker_start if is_ray_start(command)]
    said = [option(command, name) or "" for command in starts for name in ("labels", "resources")]
    if not said or not all("$" in value for value in said):
        yield error(
            "worker_start_ray_commands",
            "all hosts get the same command, but it does not take label and resource from the host",
            '--labels=fedray.owner=$FEDRAY_OWNER --resources="{\\"owner:$FEDRAY_OWNER\\": 1}"',
        )
    addresses = [str(mapping(file.raw.get("provider")).get("head_ip", "")), *file.worker_addresses]
    for address in sorted({one for one in addresses if addresses.count(one) > 1}):
        yield error("provider", f"{address} is named twice", "a host is either the head or one worker")
    yield note(
        "provider",
        "each host says itself which owner's it is, in /etc/fedray/environment and /etc/fedray/owner.json",
        "`fedray doctor` on the running cluster shows what they say",
    )
    yield note(
        "provider",
        "`ray down` stops Ray on the head alone; `ray up` starts all hosts but one, unless told to use autoscaler v1",
        "use `fedray cluster up` and `fedray cluster down`, which see to it",
    )
