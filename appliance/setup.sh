#!/usr/bin/env bash
# Installs what is missing on a Debian machine, and nothing twice: system packages, a virtual environment, browser
# libraries. Argument: `demo` (what a demonstration needs) or `all` (tests as well). A second run only compares a stamp.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
log=build/setup.log
mkdir -p build
start=$SECONDS

say() { printf 'setup [%3d s] %s\n' $((SECONDS - start)) "$*"; }
fail() {
    printf 'setup: %s failed. Its last words:\n\n' "$1" >&2
    tail -n 15 "$log" >&2
    printf '\nAll of it is in %s. %s\n' "$log" "$2" >&2
    exit 1
}

# --no-install-recommends keeps graphical stacks out. ovmf and swtpm: for desktops that start by UEFI or have a TPM.
packages=(python3 python3-venv python3-dev gcc pkg-config libvirt-dev ca-certificates openssl tzdata
    qemu-system-x86 qemu-utils ovmf swtpm swtpm-tools libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
    libvirt-daemon-system
    mmdebstrap debian-archive-keyring syslinux syslinux-common mtools dosfstools fdisk e2fsprogs systemd-boot-efi
    busybox-static cpio zstd xz-utils lz4 kmod util-linux procps bubblewrap)
[ "$what" = demo ] || packages+=(chromium slapd ldap-utils git avahi-daemon avahi-utils
    samba samba-dsdb-modules samba-vfs-modules samba-ad-provision winbind curl jq iproute2 iptables
    rsync openssh-client openssh-server xfsprogs btrfs-progs)
command -v npm >/dev/null || packages+=(nodejs npm)

stamp=build/setup-$what.stamp
wanted=$({ cat appliance/setup.sh requirements.lock setup.cfg package-lock.json 2>/dev/null || true; } | sha256sum | cut -c1-16)
vendor=kmgr/web/static/vendor
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/kmgr ] && { [ ! -f package.json ] || [ -d $vendor ]; }; then
    exit 0
fi
: >"$log"

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || { echo "setup: this is made for Debian 12 or 13: apt-get is missing" >&2; exit 1; }
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "setup: run it as root: ${missing[*]} must be installed" >&2; exit 1; }
        as_root=(sudo)
    fi
    say "Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
    # Tests and demonstration start their own directories and hypervisors: packages shall start none on this machine.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
        "${as_root[@]}" chmod 755 $policy
        trap '"${as_root[@]}" rm -f $policy' EXIT
    fi
    "${apt[@]}" update >>"$log" 2>&1 || true
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
        fail "apt-get install" "Is the machine on the network, and are its package sources right (apt-get update)?"
fi

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=/usr/bin/python3
    $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3
    $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "setup: Python 3.11 or newer is needed: Debian 12 and 13 have it as python3" >&2; exit 1; }
    say "virtual environment with $($python -V)"
    rm -rf .venv
    $python -m venv .venv >>"$log" 2>&1 || fail "python3 -m venv" "Is python3-venv installed?"
fi
say "Python packages (about half a minute)"
.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock >>"$log" 2>&1 ||
    fail "pip install" "Is the package index reachable from here?"
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e . >>"$log" 2>&1 ||
    fail "pip install -e ." "The checkout may be damaged: git status"

if [ -f package.json ]; then
    say "browser libraries"
    npm ci --ignore-scripts --no-audit --no-fund >>"$log" 2>&1 || fail "npm ci" "Is the npm registry reachable from here?"
    npm run --silent vendor >>"$log" 2>&1 || fail "npm run vendor" "See package.json."
fi
printf '%s\n' "$wanted" >"$stamp"
say "done"
