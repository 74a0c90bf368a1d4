#!/usr/bin/env bash
# One host, as process 1 of namespaces of its own: host.sh NAME ADDRESS ROOM. Its disk is /srv, which no other host has;
# /etc is its own too, and /tmp, /run and /dev/shm are empty each time its power is switched on.
set -euo pipefail
name=$1 address=$2 room=$3
hostname "$name"

if [ ! -d "$room/etc" ]; then
    cp -a /etc "$room/etc"
    rm -f "$room"/etc/ssh/ssh_host_*
    mkdir -p "$room/etc/fedray" "$room/srv/root/.ssh"
    sed -i 's,^root:\([^:]*\):0:0:\([^:]*\):[^:]*:.*,root:\1:0:0:\2:/srv/root:/bin/bash,' "$room/etc/passwd"
    cp "$HOME/.ssh/id_ed25519.pub" "$room/srv/root/.ssh/authorized_keys"
    echo ". /etc/fedray/environment" >"$room/srv/root/.bashrc"
    chmod -R go-w "$room/srv/root"
    {
        echo "export FEDRAY_ADDRESS=$address FEDRAY_CPUS=2 PATH=$PATH RAY_AUTH_MODE=token"
        echo "export PYTHONPATH=${PYTHONPATH:-} RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=200000000"
        if [ "$name" != head ]; then echo "export FEDRAY_OWNER=$name"; fi
    } >"$room/etc/fedray/environment"
fi

until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1 # without one, Ray takes 127.0.0.1 for the host's address

mount --bind "$room/etc" /etc
mount --bind "$room/srv" /srv
for folder in /run /dev/shm /tmp; do mount -t tmpfs tmpfs "$folder"; done # /tmp last: the room is in it
mkdir -p /run/sshd
export HOME=/srv/root
cd "$HOME"
ssh-keygen -A
if [ "$name" != head ]; then fedray cluster identify "$name"; fi

while :; do # a shell as process 1 reaps what Ray leaves
    /usr/sbin/sshd -D -o UsePAM=no -o PermitRootLogin=prohibit-password || sleep 0.2
done
