#!/usr/bin/env bash
# The long form of the tests in tests/e2e/storm: eight clients create, start, exec, stop and delete containers while the
# daemon is killed 200 times, then while the runtime's processes, the hook agent, the packet filter, the disk, the clock
# and the descriptors fail. Each run is in a lab of its own. Arguments are names of tests; without one, all are run.
#
#   STORM_KILLS=1000 scripts/storm.sh killed     more kills
#   STORM_SECONDS=60 scripts/storm.sh            longer weather for the others
#   STORM_SEED=4711 scripts/storm.sh             the choices of an earlier run, which printed its seed
#   STORM_ROUNDS=5 scripts/storm.sh              again and again, each time with a new seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

need_root "$@"
need iptables=iptables ip=iproute2 modprobe=kmod cc=build-essential busybox=busybox-static \
    docker-registry=docker-registry unshare=util-linux mkfs.ext4=e2fsprogs faketime=faketime \
    update-ca-certificates=ca-certificates
need_cargo build

export STORM_KILLS=${STORM_KILLS:-200} STORM_SECONDS=${STORM_SECONDS:-30}
[ $# -gt 0 ] || set -- storm::
for round in $(seq "${STORM_ROUNDS:-1}"); do
    say "round $round: $STORM_KILLS kills, $STORM_SECONDS s of weather"
    for name in "$@"; do
        cargo test --locked --test e2e -- --test-threads=1 --nocapture "$name"
    done
done
