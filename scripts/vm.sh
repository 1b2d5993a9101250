#!/usr/bin/env bash
# Checks Condenser on a machine of its own: Debian with systemd, cgroup version 2 and AppArmor, in QEMU. By hand and
# before a release; docs/testing.md tells more.
#
#   scripts/vm.sh [OPTION...] [PHASE...]   makes what is missing, boots a fresh copy of the disk, runs the phases (all
#                                          of them if none is named), writes the report, ends the machine
#   scripts/vm.sh [OPTION...] up | down    boots the machine and leaves it running | ends it
#   scripts/vm.sh [OPTION...] on PHASE...  phases in the machine that runs
#   scripts/vm.sh [OPTION...] sh COMMAND   a command in the machine that runs
#
#   --bin DIR      condenser, droplet and condenser-hook-agent; otherwise they are built (cargo build --release)
#   --peer DIR     programs of the original, `droplet` and `raind`, to be checked under and against this daemon
#   --report FILE  also write the report there, as for docs/vm-report.md
#   --cache DIR    disks and results [target/vm]; about 4 GB
#   --suite NAME   release of Debian [trixie]
#   --mirror URL   its packages [the mirror that apt uses here]
#   --again        make the root disk anew
#   --accel NAME   tcg or kvm [kvm where the processor can, else tcg]
#   --nice N       niceness of QEMU [15]
#   --smp N        processors of the machine [2]
#
# Needs root and Debian's packages, which it installs when they are missing. The first run takes some minutes more, for
# the disks; a run takes ten minutes with kvm, an hour or more without. Nothing of the host is touched but the cache: the
# machine's network is a namespace, which goes away with it. Exit code: 0 when no check failed.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh
here=scripts/vm
# shellcheck source=scripts/vm/lib.sh
. "$here/lib.sh"
# shellcheck source=scripts/vm/disks.sh
. "$here/disks.sh"
# shellcheck source=scripts/vm/host.sh
. "$here/host.sh"
# shellcheck source=scripts/vm/checks/install.sh
. "$here/checks/install.sh"
# shellcheck source=scripts/vm/checks/limits.sh
. "$here/checks/limits.sh"
# shellcheck source=scripts/vm/checks/service.sh
. "$here/checks/service.sh"
# shellcheck source=scripts/vm/checks/apparmor.sh
. "$here/checks/apparmor.sh"
# shellcheck source=scripts/vm/checks/programs.sh
. "$here/checks/programs.sh"
# shellcheck source=scripts/vm/checks/files.sh
. "$here/checks/files.sh"
# shellcheck source=scripts/vm/checks/workloads.sh
. "$here/checks/workloads.sh"
# shellcheck source=scripts/vm/checks/ports.sh
. "$here/checks/ports.sh"
# shellcheck source=scripts/vm/checks/firewalls.sh
. "$here/checks/firewalls.sh"
# shellcheck source=scripts/vm/checks/reboot.sh
. "$here/checks/reboot.sh"
# shellcheck source=scripts/vm/checks/original.sh
. "$here/checks/original.sh"
# shellcheck source=scripts/vm/checks/uninstall.sh
. "$here/checks/uninstall.sh"
# In the order in which they build on each other.
phases=(install limits service apparmor programs files ports workloads firewalls reboot reset original uninstall)

bin='' peer='' report='' cache=target/vm suite=trixie mirror='' again='' accel='' nice=15 smp=2 keep=''

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
        --bin | --peer | --report | --cache)
            [ -n "${2-}" ] || die "$1 needs a path"
            declare "${1#--}=$(cd "$called_from" && realpath -m "$2")"
            shift
            ;;
        --suite | --mirror | --accel | --nice | --smp)
            [ -n "${2-}" ] || die "$1 needs a value"
            declare "${1#--}=$2"
            shift
            ;;
        --again) again=1 ;;
        --help | -h) usage && exit 0 ;;
        --*) usage >&2 && exit 2 ;;
        *) break ;;
    esac
    shift
done

# run_phase NAME: host_NAME if there is one, else guest_NAME in the machine.
run_phase() {
    local start=$SECONDS
    say "$1"
    if declare -F "host_$1" > /dev/null; then "host_$1"; else in_machine "guest_$1"; fi > "$state/$1.log" 2>&1
    rows "$1" | awk -F'\t' '$1 != "ok" { printf "    %-7s %s: %s\n", $1, $2, $4 }'
    printf '    %s ok, %s failed, %s s\n' "$(rows "$1" | grep -c ^ok)" "$(rows "$1" | grep -c ^FAIL)" $((SECONDS - start))
}

# rows PHASE: verdict, check, expected, seen.
rows() { grep -a $'^CHECK\t' "$state/$1.log" | cut -f2-; }

seen() { rows install 2> /dev/null | awk -F'\t' -v name="$1" '$2 == name { print $4 }'; }

write_report() {
    local phase
    {
        printf '# Report of scripts/vm.sh\n\n'
        printf -- '- %s, commit %s\n' "$(date -u '+%F %H:%M UTC')" "$(git describe --always --dirty 2> /dev/null || echo unknown)"
        printf -- '- %s (%s); %s\n' "$(seen program)" "${bin:-built here}" "$(seen versions)"
        printf -- '- %s, accelerator %s\n' "$(qemu-system-x86_64 --version | head -1)" "$accel"
        printf -- '- %s checks hold, %s failed, %s not run\n\n' "$(count ok)" "$(count FAIL)" "$(count 'not run')"
        printf 'What was expected is a pattern of bash. Rows without a verdict are for information.\n\n'
        printf '| phase | check | expected | seen | verdict |\n|---|---|---|---|---|\n'
        for phase in "${phases[@]}"; do
            [ -f "$state/$phase.log" ] || continue
            rows "$phase" | sed 's/[\\|<*_`]/\\&/g' |
                awk -F'\t' -v phase="$phase" '{ printf "| %s | %s | %s | %s | %s |\n", phase, $2, $3, $4, $1 }'
        done
    } > "$state/report.md"
    [ -z "$report" ] || cp "$state/report.md" "$report"
    printf '\n%s checks hold, %s failed, %s not run: %s\n' "$(count ok)" "$(count FAIL)" "$(count 'not run')" "$state/report.md"
}

# count VERDICT
count() { cat "$state"/*.log | grep -ac $'^CHECK\t'"$1"$'\t'; }

run_phases() {
    local phase
    [ $# -gt 0 ] || set -- "${phases[@]}"
    for phase; do
        [[ " ${phases[*]} " == *" $phase "* ]] || die "there is no phase $phase, but: ${phases[*]}"
    done
    for phase; do run_phase "$phase"; done
    write_report
    [ "$(count FAIL)" = 0 ]
}

make_and_boot() {
    if alive qemu; then die "the machine runs already: scripts/vm.sh down ends it"; fi
    need qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils debootstrap=debootstrap mkfs.ext4=e2fsprogs umoci=umoci \
        skopeo=skopeo openssl=openssl ssh=openssh-client python3=python3 socat=socat ip=iproute2 unshare=util-linux strip=binutils
    if [ -z "$bin" ]; then
        need_cargo build
        say "building the programs"
        cargo build --release --locked --bins
    fi
    for program in condenser droplet condenser-hook-agent; do
        [ -x "${bin:-target/release}/$program" ] || die "--bin: there is no $bin/$program"
    done
    make_disks
    rm -f "$state"/*.{log,pid}
    boot
}

need_root "$@"
disks=$(realpath -m "$cache/$suite") state=$(realpath -m "$cache/run")
mkdir -p "$disks" "$state"
if [ -z "$accel" ]; then
    accel=tcg
    if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accel=kvm; fi
fi
# One run at a time in a cache.
exec 9>> "$cache/lock"
flock -n 9 || die "another scripts/vm.sh works in $cache"

case ${1-} in
    up)
        keep=1
        make_and_boot
        ;;
    down) shut_down ;;
    sh | on)
        alive qemu || die "no machine runs: scripts/vm.sh up boots one"
        verb=$1 keep=1
        shift
        if [ "$verb" = on ]; then run_phases "$@"; else machine "$@"; fi
        ;;
    *)
        trap shut_down EXIT
        make_and_boot
        run_phases "$@"
        ;;
esac
