#!/usr/bin/env bash
# Runs a command on a machine of its own: scripts/lab.sh COMMAND [ARGUMENT...]
#
# The command gets private process, mount, network, UTS, IPC and cgroup namespaces. It sees the file system of this
# machine, except that /run, /mnt, /etc/raind and /var/log are empty and changes under /etc stay private. Its uplink
# is eth0, 192.0.2.2/24; the default route leads to 192.0.2.1, which is the network namespace `outside`:
#
#     +-- the lab ----------------------+        +-- outside ------------------------+
#     | eth0 192.0.2.2/24               | <----> | eth0 192.0.2.1/24                 |
#     | all processes, mounts, cgroups  |        | reach it with: ip netns exec      |
#     +---------------------------------+        |   outside COMMAND                 |
#                                                +-----------------------------------+
#
# Labs run side by side. When the command ends, all that was started in the lab is killed and nothing of it remains.
# LAB_PID is the pid, outside of the lab, of its first process, a target for nsenter; LAB_CGROUPS are its cgroup
# directories, outside of the lab too.
set -euo pipefail

# Prints "TYPE MOUNTPOINT OPTIONS" of every cgroup hierarchy.
hierarchies() {
    awk '{ for (i = 7; $i != "-"; i++); if ($(i+1) ~ /^cgroup2?$/) print $(i+1), $5, $(i+3) }' /proc/self/mountinfo
}

# Prints the directory of this process in the hierarchy "TYPE MOUNTPOINT OPTIONS".
own_group() {
    local type=$1 mount=$2 options=$3 id names path
    while IFS=: read -r id names path; do
        if { [ "$type" = cgroup2 ] && [ "$id" = 0 ]; } || { [ -n "$names" ] && [[ ",$options," == *",$names,"* ]]; }; then
            echo "${mount}${path%/}"
            return
        fi
    done < /proc/self/cgroup
}

remove_groups() {
    local group try
    for group in "$@"; do
        for try in 1 2 3 4 5; do
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
            if [ ! -d "$group" ]; then break; fi
            sleep "0.$try"
        done
    done
}

# The part that runs on the machine: one cgroup per hierarchy around the lab, removed afterwards.
outer() {
    local type mount options parent groups=() group stale
    while read -r type mount options; do
        parent=$(own_group "$type" "$mount" "$options")
        if [ -z "$parent" ] || [ ! -d "$parent" ]; then continue; fi
        for stale in "$parent"/raind-lab-*; do
            if [ -d "$stale" ] && [ ! -d "/proc/${stale##*-}" ]; then remove_groups "$stale"; fi
        done
        mkdir "$parent/raind-lab-$$"
        groups+=("$parent/raind-lab-$$")
        if [ "$type" = cgroup ] && [ -f "$parent/cpuset.cpus" ]; then
            cat "$parent/cpuset.cpus" > "$parent/raind-lab-$$/cpuset.cpus"
            cat "$parent/cpuset.mems" > "$parent/raind-lab-$$/cpuset.mems"
            echo 1 > "$parent/raind-lab-$$/cgroup.clone_children"
        fi
    done < <(hierarchies)
    # shellcheck disable=SC2064 # the list is complete now, and local to this function
    trap "remove_groups ${groups[*]}" EXIT
    trap '' INT
    export LAB_CGROUPS="${groups[*]}"
    (
        trap - INT
        for group in "${groups[@]}"; do echo "$BASHPID" > "$group/cgroup.procs"; done
        exec unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup --propagation private \
            -- "${BASH_SOURCE[0]}" --inside "$@"
    )
}

# The part that is the first process of the lab.
inside() {
    local type mount options list rest base='' flags word controller
    # It mounts over /etc, /run and more. Anywhere else that would be the machine's own.
    if [ $$ != 1 ]; then
        echo "lab.sh: --inside is for the first process of a lab" >&2
        exit 2
    fi
    # The mounted /proc is still the machine's.
    read -r LAB_PID rest < /proc/self/stat
    export LAB_PID
    hostname raind-lab

    # Hierarchies are mounted anew, so that their root is the root of the cgroup namespace; sysfs, so that it shows
    # the interfaces of this network namespace.
    list=$(hierarchies)
    umount --lazy --recursive /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t sysfs sysfs /sys
    mount -t securityfs securityfs /sys/kernel/security 2> /dev/null || true
    while read -r type mount options; do
        if [ "$mount" != /sys/fs/cgroup ]; then
            # The first of several: they live on a tmpfs.
            [ -n "$base" ] || mount -t tmpfs -o mode=755 tmpfs "${base:=/sys/fs/cgroup}"
            mkdir "$mount"
        fi
        flags=
        for word in ${options//,/ }; do
            case $word in
                rw | ro | xattr | release_agent=* | nsdelegate | memory_*) ;;
                name=*) flags=none,$word ;;
                *) flags+=${flags:+,}$word ;;
            esac
        done
        mount -t "$type" ${flags:+-o "$flags"} cgroup "$mount"
        # In version 2 only a group without processes of its own can hand controllers on.
        if [ "$type" = cgroup2 ] && [ -s "$mount/cgroup.controllers" ]; then
            mkdir "$mount/init"
            echo 0 > "$mount/init/cgroup.procs"
            for controller in $(< "$mount/cgroup.controllers"); do echo "+$controller" > "$mount/cgroup.subtree_control"; done
        fi
    done <<< "$list"
    mount -t proc proc /proc

    mkdir /run/lock /run/netns /run/etc /run/etc.work
    mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
    mkdir -p /etc/raind
    mount -t tmpfs -o mode=755 tmpfs /etc/raind
    mount -t tmpfs -o mode=755 tmpfs /var/log
    mount -t tmpfs -o mode=755 tmpfs /mnt
    rm -f /etc/resolv.conf
    echo 'nameserver 192.0.2.1' > /etc/resolv.conf
    printf '127.0.0.1 localhost raind-lab\n' > /etc/hosts

    ip netns add outside
    ip -batch - <<< 'link set lo up
link add eth0 type veth peer name eth0 netns outside
addr add 192.0.2.2/24 dev eth0
link set eth0 up
route add default via 192.0.2.1'
    # What lies behind the outside does not exist, and says so at once.
    ip -n outside -batch - <<< 'link set lo up
addr add 192.0.2.1/24 dev eth0
link set eth0 up
route add unreachable default'
    nsenter --net=/run/netns/outside sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'

    # Not exec: this shell stays the first process and reaps whatever loses its parent.
    "$@"
}

if [ "${1-}" = --inside ]; then
    shift
    inside "$@"
elif [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 2
else
    outer "$@"
fi
