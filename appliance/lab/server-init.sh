#!/bin/bash
# The first process of one private libvirt: makes the daemon's folders its own, starts it, and reaps what QEMU leaves.
# Arguments: the folder, the name of the server, and whether /dev/kvm is shown (kvm) or hidden (tcg).
# USR1 starts libvirtd, USR2 stops it and leaves the desktops running; KILL from outside is the power cut.
set -e
folder=$1 name=$2 accelerator=$3

mount --make-rprivate /
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$(realpath "$folder/${pair%%:*}")" "${pair#*:}"
done

if [ "$accelerator" = tcg ]; then
    # libvirt probes a /dev/kvm that opens again at each start, for seconds: it must not be there.
    dev=$folder/dev
    mkdir -p "$dev"
    mount -t tmpfs -o mode=755 dev "$dev"
    mkdir "$dev/net" "$dev/pts" "$dev/shm"
    for node in null zero full random urandom tty net/tun; do
        [ -e "/dev/$node" ] || continue
        touch "$dev/$node"
        mount --bind "/dev/$node" "$dev/$node"
    done
    mount --bind /dev/pts "$dev/pts"
    mount --bind /dev/shm "$dev/shm"
    ln -s pts/ptmx "$dev/ptmx"
    ln -s /proc/self/fd "$dev/fd"
    mount --move "$dev" /dev
fi

set +e
start() { libvirtd --pid-file /run/libvirt/lab.pid & }
stop() { kill "$(cat /run/libvirt/lab.pid)"; }
trap start USR1
trap stop USR2
start
while :; do
    wait
    sleep 1d &
    wait -n
done
