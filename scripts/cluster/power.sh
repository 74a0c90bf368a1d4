#!/usr/bin/env bash
# A host's power switch: power.sh on NAME ADDRESS | power.sh cut NAME. Cutting is kill -9 of all that runs there; its
# disk stays, as it was at that moment.
set -euo pipefail
name=$2
room=$ROOM/$name

if [ "$1" = on ]; then
    mkdir -p "$room/srv"
    unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc \
        "$(dirname "$0")/host.sh" "$name" "$3" "$room" >"$room/console" 2>&1 </dev/null &
    outside=$!
    here=$(readlink /proc/self/ns/net)
    until inside=$(readlink "/proc/$outside/ns/net") && [ "$inside" != "$here" ]; do sleep 0.05; done
    until first=$(pgrep -P "$outside"); do sleep 0.05; done
    echo "$first" >"$room/first"
    ip link add "v-$name" type veth peer name eth0 netns "$outside"
    ip link set "v-$name" master br0 up
    disown
else
    kill -9 "$(cat "$room/first")"
fi
