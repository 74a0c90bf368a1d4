#!/usr/bin/env bash
# The operator's machine, a namespace of its own: the network, the hosts' disks and power, and whoever runs `fedray
# cluster`. Started by scripts/cluster/launch.
set -euo pipefail
checkout=$PWD
export PATH=$checkout/.venv/bin:$PATH:/usr/sbin
export ROOM=/tmp/room # where disks and power switches are
export HOME=/tmp/home

hostname operator
mount -t tmpfs tmpfs /tmp
mkdir -p "$ROOM" "$HOME/.ssh"
cp -a /etc /tmp/etc
sed -i "s,^root:\([^:]*\):0:0:\([^:]*\):[^:]*:.*,root:\1:0:0:\2:$HOME:/bin/bash," /tmp/etc/passwd
mount --bind /tmp/etc /etc
mount --bind "$checkout" "$checkout"
mount -o remount,ro,bind "$checkout" # nobody here may change it

ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
ssh-keygen -q -t ed25519 -N '' -f "$HOME/.ssh/id_ed25519"

exec python "$checkout/scripts/cluster/scenario.py"
