#!/usr/bin/env bash
# Measures the daemon in a lab and prints each figure beside its target. Takes a few minutes, most of it building.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

need_root "$@"
need iptables=iptables ip=iproute2 modprobe=kmod cc=build-essential busybox=busybox-static \
    docker-registry=docker-registry unshare=util-linux mkfs.ext4=e2fsprogs
need_cargo build
cargo bench --locked --bench lifecycle "$@"
