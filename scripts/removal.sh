# shellcheck shell=bash
# To be sourced after packages.sh: what the other scripts need to know before they remove something of Condenser, and how
# they remove it. Nothing here touches rules, interfaces or files of others.

# here PROCESS: whether the process (/proc/PID) sees our files. What a container, or a lab, runs is not ours.
here() {
    [ "$1/ns/mnt" -ef /proc/self/ns/mnt ] || [ "$1/ns/mnt" -ef /proc/1/ns/mnt ]
}

# running PATTERN: pids of processes whose program matches, also one that was replaced since. The runtime runs containers
# from a sealed copy of itself, which is called /droplet.
running() {
    local exe program
    for exe in /proc/[0-9]*/exe; do
        program=$(readlink "$exe" 2> /dev/null) || continue
        # shellcheck disable=SC2053 # a pattern
        if [[ ${program% (deleted)} = $1 ]] && here "${exe%/exe}"; then basename "${exe%/exe}"; fi
    done
}

# program_of PID: the file that it runs.
program_of() {
    local program
    program=$(readlink "/proc/$1/exe" 2> /dev/null) || return
    printf '%s\n' "${program% (deleted)}"
}

# daemons [PATH]: "PID PATH" of every daemon of this machine, wherever its program is, but for those of PATH.
daemons() {
    local pid program
    for pid in $(running '*/condenser'); do
        program=$(program_of "$pid") || continue
        [ "$program" = "${1-}" ] || printf '%s %s\n' "$pid" "$program"
    done
}

# installations [BINDIR]: programs and units of install.sh or a package, but for those that belong to BINDIR.
installations() {
    local directory path seen=''
    for directory in /usr/local/bin /usr/bin /usr/sbin /opt/bin; do
        if [ "$directory" != "${1-}" ] && [ -e "$directory/condenser" ]; then printf '%s\n' "$directory/condenser"; fi
    done
    for directory in /etc/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
        path=$directory/condenser.service
        # /lib may be /usr/lib.
        if [ ! -e "$path" ] || [ "$path" -ef "$seen" ]; then continue; fi
        seen=$path
        if [ -z "${1-}" ] || ! grep -q "^ExecStart=$1/condenser" "$path"; then printf '%s\n' "$path"; fi
    done
}

# cgroups: ours, at the root of each hierarchy.
cgroups() {
    local directory
    for directory in /sys/fs/cgroup/raind /sys/fs/cgroup/*/raind; do
        # Beside the controllers of version 2 are cgroups of others, not hierarchies.
        if [ -e /sys/fs/cgroup/cgroup.controllers ] && [ "$directory" != /sys/fs/cgroup/raind ]; then continue; fi
        [ ! -d "$directory" ] || printf '%s\n' "$directory"
    done
}

# links: names of our interfaces. The daemon marks its bridges with an alias; the ends of interface pairs whose container
# did not take them along have a name that nobody else gives.
links() {
    local directory
    for directory in /sys/class/net/*/; do
        directory=${directory%/}
        if [ -d "$directory/bridge" ] && [ "$(cat "$directory/ifalias" 2> /dev/null)" = condenser ]; then
            basename "$directory"
        elif [[ ${directory##*/} =~ ^rd_[0-9a-hjkmnp-tv-z]{12}$ ]]; then
            basename "$directory"
        fi
    done
}

# rules: how many rules and chains of ours there are.
rules() {
    local family
    for family in iptables ip6tables; do
        command -v "$family-save" > /dev/null || continue
        "$family-save" | sed 's/"[^"]*"//g'
    done | grep -cE '^:RAIND-|^-A RAIND-| -[jg] RAIND-' || true
}

# left_running: pids of monitors, and of whatever is in a cgroup of a container.
left_running() {
    running /droplet
    local directory
    for directory in $(cgroups); do
        find "$directory" -name cgroup.procs -exec cat {} + 2> /dev/null || true
    done | sort -u
}

# end_containers DIRECTORY [RUNTIME]: by the runtime, if it is there, then whatever is left of it.
end_containers() {
    local path id pid try patience=0
    if [ -x "${2-}" ]; then
        for path in "$1"/*/; do
            [ -d "$path" ] || continue
            id=$(basename "$path")
            RAIND_ROOT_DIR=$1 timeout 15 "$2" kill "$id" KILL > /dev/null 2>&1 || true
            # Its hooks report to the daemon, which is not there.
            RAIND_ROOT_DIR=$1 timeout 30 "$2" delete "$id" > /dev/null 2>&1 || true
        done
        # Monitors end by themselves after that; without a runtime nobody has told them to.
        patience=25
    fi
    for try in $(seq 50); do
        [ -n "$(left_running)" ] || return 0
        if [ "$try" -gt "$patience" ]; then
            for pid in $(left_running); do kill -KILL "$pid" 2> /dev/null || true; done
        fi
        sleep 0.2
    done
    die "these processes of containers do not end: $(left_running | xargs)"
}

# Takes our chains, all named RAIND-..., and the jumps to them out of every table; rules of others are not touched.
remove_rules() {
    local family
    for family in iptables ip6tables; do
        command -v "$family-save" > /dev/null || continue
        # What is in quotes is a comment, of whomever.
        "$family-save" | awk '
            { bare = $0; gsub(/"([^"\\]|\\.)*"/, "", bare) }
            /^\*/ { table = $0 }
            /^:RAIND-/ { chain = substr($1, 2); flush[table] = flush[table] ":" chain " - [0:0]\n"; drop[table] = drop[table] "-X " chain "\n" }
            /^-A / && $2 !~ /^RAIND-/ && bare ~ / -[jg] RAIND-/ { sub(/^-A/, "-D"); jump[table] = jump[table] $0 "\n" }
            END { for (table in flush) printf "%s\n%s%s%sCOMMIT\n", table, flush[table], jump[table], drop[table] }
        ' | "$family-restore" --noflush
    done
}

# remove_kernel_objects ROOT [RUNTIME]: containers, rules, interfaces, cgroups and the profile of AppArmor.
remove_kernel_objects() {
    local link directory
    end_containers "$1/container" "${2-}"
    remove_rules
    for link in $(links); do ip link delete "$link" 2> /dev/null || true; done
    for directory in $(cgroups); do find "$directory" -depth -type d -exec rmdir {} + 2> /dev/null || true; done
    if grep -qs '^raind-default ' /sys/kernel/security/apparmor/profiles; then
        apparmor_parser -R "$1/lsm/apparmor/raind-default" || true
    fi
}

# remove PATH [DESTDIR]: with all beneath it. What is mounted there is not followed, and one that is a mount point itself
# stays.
remove() {
    local path=${2-}$1 mount
    if [ -L "$path" ]; then rm -f "$path"; fi
    [ -e "$path" ] || return 0
    # A bind mount of the same file system is no boundary for find: it would empty what stands behind a volume.
    if [ -z "${2-}" ]; then
        awk -v beneath="$(realpath "$path")/" 'index($5, beneath) == 1 { print $5 }' /proc/self/mountinfo | tac |
            while read -r mount; do
                printf -v mount %b "$mount"
                umount --lazy --no-canonicalize "$mount" || die "$mount cannot be unmounted"
            done
    fi
    find "$path" -xdev -mindepth 1 -delete || die "$1 cannot be removed as a whole"
    rm -f "$path" 2> /dev/null || rmdir "$path" 2> /dev/null || true
}
