#!/usr/bin/env bash
# All checks and tests of a clone. Installs the Debian packages that they need and are missing; touches nothing else of
# the machine: what needs networks, mounts or rules runs in namespaces of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

need_root "$@"
need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq cc=build-essential busybox=busybox-static \
    umoci=umoci skopeo=skopeo docker-registry=docker-registry shellcheck=shellcheck unshare=util-linux \
    mkfs.ext4=e2fsprogs update-ca-certificates=ca-certificates faketime=faketime
need_cargo

say "shell scripts"
shellcheck --external-sources scripts/*.sh .ci/run

say "format"
cargo fmt --check

say "lints"
cargo clippy --locked --all-targets -- -D warnings

if cargo deny --version > /dev/null 2>&1; then
    say "licences and advisories"
    cargo deny --offline check bans licenses sources
fi

# Root file systems of real programs take minutes and 250 MB the first time; only tests/shapes needs them.
case "$*" in
    "" | *shapes*) scripts/shapes.sh ;;
esac

say "tests"
if cargo nextest --version > /dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast "$@"
else
    cargo test --locked --no-fail-fast "$@"
fi
