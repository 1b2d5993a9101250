#!/usr/bin/env bash
# All checks and tests of a clone:
#
#   scripts/test.sh                    format, unit tests, lints, then everything else
#   scripts/test.sh [OPTION] NAME...   the tests whose name contains one of these, as in `ports::`; then the lints
#   scripts/test.sh -E EXPRESSION      as in 'test(ports::)': an expression of cargo-nextest. Without nextest, test(),
#                                      test(=), binary(), kind(lib) and & between them are understood
#
# Installs the Debian packages that they need and are missing; touches nothing else of the machine: what needs networks,
# mounts or rules runs in namespaces of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

# For cargo test: options for cargo, and words for the test programs.
options=() words=()

# without_nextest ARGUMENT...: fills options and words. Dies of what cargo test cannot do.
without_nextest() {
    while [ $# -gt 0 ]; do
        case $1 in
            -E | --filterset | --filter-expr) expression "${2-}" && shift ;;
            -E*) expression "${1#-E}" ;;
            --test | --bin | --features | -F | -j | --jobs) options+=("$1" "${2-}") && shift ;;
            -*) options+=("$1") ;;
            *) words+=("$1") ;;
        esac
        shift
    done
}

# expression TEXT: terms with & or `and` between them.
expression() {
    local term name names=0
    while read -r term; do
        name=${term#*(} name=${name%)}
        # Other operators, and regular expressions.
        [[ $name =~ ^=?[A-Za-z0-9_:]+$ ]] || term=''
        case $term in
            'test(='*')') words+=(--exact "${name#=}") && names=$((names + 1)) ;;
            'test('*')') words+=("$name") && names=$((names + 1)) ;;
            'binary('*')') options+=(--test "${name#=}") ;;
            'kind(lib)') options+=(--lib) ;;
            *) names=2 ;;
        esac
        [ "$names" -lt 2 ] || die "-E '$1' needs cargo-nextest, which is not installed (cargo install --locked cargo-nextest,
some ten minutes). Without it: scripts/test.sh NAME..., or -E 'test(NAME)' and -E 'binary(e2e) & test(NAME)'"
    done < <(sed 's/ and /\n/g; s/ *& */\n/g' <<< "$1")
}

run_tests() {
    say "tests${*:+: $*}"
    if [ -n "$nextest" ]; then
        cargo nextest run --locked --no-fail-fast "$@"
    else
        options=() words=()
        without_nextest "$@"
        cargo test --locked --no-fail-fast "${options[@]}" -- "${words[@]}"
    fi
}

scripts_and_format() {
    say "shell scripts"
    shellcheck --external-sources scripts/*.sh .ci/run
    say "format"
    cargo fmt --check
}

lints() {
    say "lints"
    cargo clippy --locked --all-targets -- -D warnings
    if cargo deny --version > /dev/null 2>&1; then
        say "licences and advisories"
        cargo deny --offline check bans licenses sources
    fi
}

# What would make it fail later, first.
need_root "$@"
need_cargo fmt clippy
nextest=$(cargo nextest --version 2> /dev/null | head -n 1 || true)
if [ -z "$nextest" ]; then without_nextest "$@"; fi
need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq cc=build-essential busybox=busybox-static \
    umoci=umoci skopeo=skopeo docker-registry=docker-registry shellcheck=shellcheck unshare=util-linux \
    mkfs.ext4=e2fsprogs update-ca-certificates=ca-certificates faketime=faketime ps=procps openssl=openssl \
    sqlite3=sqlite3 nft=nftables buildah=buildah podman=podman

# Root file systems of real programs take minutes and 250 MB the first time; only tests/shapes needs them.
shapes() {
    case "$*" in
        "" | *shapes*) scripts/shapes.sh ;;
    esac
}

if [ $# -gt 0 ]; then
    shapes "$@"
    run_tests "$@"
    scripts_and_format
    lints
else
    scripts_and_format
    run_tests --lib --bins
    lints
    shapes
    run_tests --test '*'
fi
