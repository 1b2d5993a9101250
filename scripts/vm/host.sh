# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# To be sourced by vm.sh: the host's side of the machine: its network, QEMU, ssh.
#
# The machine's only cable leads to a network namespace without a name and without a way out. It lives as long as the
# process outside.py, which is its gateway 192.0.2.1, a web server and, as 8.8.8.8, a DNS server. The machine is 192.0.2.2.

# in_net COMMAND...: as seen by the world outside of the machine.
in_net() { nsenter --target "$(outside_pid)" --net -- "$@"; }
outside_pid() { cut -d' ' -f1 "$state/outside.pid"; }

# alive NAME: whether the process of $state/NAME.pid is there, and is the one that was started.
alive() {
    local pid start
    [ -f "$state/$1.pid" ] && read -r pid start < "$state/$1.pid" && [ "$(started "$pid")" = "$start" ]
}

# started PID: when it started, in ticks since the boot; nothing if it is gone.
started() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

# launch NAME COMMAND...: in the background, with its number in $state/NAME.pid. It ends when this script does, unless
# the machine is to stay ($keep).
launch() {
    local name=$1 guard=(setpriv --pdeathsig KILL)
    shift
    [ -z "$keep" ] || guard=()
    "${guard[@]}" "$@" > "$state/$name.log" 2>&1 < /dev/null 9>&- &
    printf '%s %s\n' $! "$(started $!)" > "$state/$name.pid"
    # Its end is no news.
    disown $!
}

# halt NAME: ends what launch has started.
halt() {
    local pid start
    if alive "$1"; then
        read -r pid start < "$state/$1.pid"
        kill -KILL "$pid" 2> /dev/null || true
        within 10 eval "! alive $1" || true
    fi
    rm -f "$state/$1.pid"
}

# monitor COMMAND: to QEMU.
monitor() { printf '%s\n' "$1" | timeout 20 socat - "unix-connect:$state/monitor" > /dev/null; }

connect() {
    launch outside unshare --net python3 "$here/outside.py"
    # unshare has become python3 by then.
    within 30 in_net ip link show tap0 || die "no network: see $state/outside.log"
}

boot() {
    local options=(-nodefaults -machine q35 -m 3072 -smp "$smp" -cpu max -rtc base=utc -display none)
    rm -f "$state"/{disk.qcow2,monitor,ssh,serial.log}
    : > "$state/serial.log"
    qemu-img create -q -f qcow2 -b "$disks/debian.img" -F raw "$state/disk.qcow2"
    connect
    # shellcheck disable=SC2054 # the commas are QEMU's
    options+=(
        -accel "$accel"
        -kernel "$disks/vmlinuz" -initrd "$disks/initrd.img"
        -append "root=LABEL=debian rw console=ttyS0 apparmor=1 security=apparmor tsc=reliable"
        -drive "file=$state/disk.qcow2,if=virtio,format=qcow2"
        -drive "file=$disks/payload.img,if=virtio,format=raw,readonly=on"
        -device virtio-rng-pci -netdev tap,id=cable,ifname=tap0,script=no,downscript=no
        -device virtio-net-pci,netdev=cable
        -serial "file:$state/serial.log" -monitor "unix:$state/monitor,server=on,wait=off"
    )
    say "booting ($accel)"
    launch qemu nsenter --target "$(outside_pid)" --net -- nice -n "$nice" qemu-system-x86_64 "${options[@]}"
    await_machine
}

# Ends the machine and what belongs to it, whatever state they are in.
shut_down() {
    ssh -q -O exit -o ControlPath="$state/ssh" root@192.0.2.2 2> /dev/null || true
    halt qemu
    halt outside
    rm -f "$state"/{monitor,ssh,disk.qcow2}
}

# machine COMMAND...: over ssh; standard input goes along. Returns its exit code.
machine() {
    in_net ssh -q -i "$disks/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o ConnectTimeout="${CONNECT-60}" -o ControlMaster=auto -o ControlPath="$state/ssh" -o ControlPersist=3600 \
        -o ServerAliveInterval=60 root@192.0.2.2 "$@" 9>&-
}

await_machine() {
    for _ in $(seq 200); do
        alive qemu || die "QEMU ended: see $state/qemu.log"
        ssh -q -O exit -o ControlPath="$state/ssh" root@192.0.2.2 2> /dev/null || true
        if CONNECT=20 machine true 2> /dev/null < /dev/null; then return; fi
        sleep 2
    done
    die "the machine does not come up: see $state/serial.log"
}

# in_machine FUNCTION [ARGUMENT...]: runs a function of these files in the machine.
in_machine() {
    local status=0
    { declare -f; printf 'set -u\n'; printf '%q ' "$@"; echo; } | timeout_machine bash -s || status=$?
    [ $status = 0 ] || check "$* ends" "exit code 0" "exit code $status"
}

timeout_machine() {
    timeout 5400 nsenter --target "$(outside_pid)" --net -- ssh -q -i "$disks/key" -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o ConnectTimeout=60 -o ControlPath="$state/ssh" root@192.0.2.2 "$@" 9>&-
}
