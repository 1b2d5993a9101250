#!/bin/bash
# Fuzzes what reads untrusted bytes: fuzz.sh [archive|build_file|images|unpack] [seconds] [options of libFuzzer]. Needs root, a nightly toolchain and cargo-fuzz.
# It runs in a mount namespace of its own in which only the corpus and a small tmpfs can be written: what leaves the
# root that is unpacked into fails, and the target notices.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-unpack}
seconds=${2:-600}
shift $(($# < 2 ? $# : 2))

cargo +nightly fuzz build "$target"
program=$(echo "$PWD"/fuzz/target/*/release/"$target")
corpus=$PWD/fuzz/corpus/$target
artifacts=$PWD/fuzz/artifacts/$target
mkdir -p "$corpus" "$artifacts"

# shellcheck disable=SC2016
exec unshare --mount --propagation private bash -euc '
    corpus=$1 artifacts=$2
    shift 2
    mount --bind "$corpus" "$corpus"
    mount --bind "$artifacts" "$artifacts"
    mount -t tmpfs -o size=256m,mode=0700 tmpfs /dev/shm
    mount -o remount,bind,ro /
    # An input that takes more than 10 s or a gigabyte is a finding too.
    exec nice -n 19 "$@"
' fuzz "$corpus" "$artifacts" "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=16384 \
    -print_final_stats=1 -artifact_prefix="$artifacts/" "$@" "$corpus"
