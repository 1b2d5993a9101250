#!/usr/bin/env bash
# Installs Condenser, upgrades it in place, or removes it:
#
#   scripts/install.sh [--from DIR] [--prefix DIR] [--destdir DIR] [--no-start]
#   scripts/install.sh --uninstall [--purge [--yes]] [--prefix DIR] [--destdir DIR]
#
#   --from DIR      take the programs from there; otherwise they are built (cargo build --release)
#   --prefix DIR    programs go to DIR/bin [/usr/local]
#   --destdir DIR   put everything below DIR and start nothing: for packages
#   --no-start      leave the service as it is; systemctl restart condenser makes it the new one
#   --uninstall     remove programs, unit and the configuration unless it was changed; data and containers stay
#   --purge         remove data, configuration, containers, and what they left in the kernel, too; asks first
#   --yes           do not ask
#
# It may be run again at any time. Running containers are not disturbed: programs are replaced, not overwritten. A
# configuration that was changed stays; the one of this version is in PREFIX/share/condenser.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

programs=(condenser-hook-agent droplet condenser)
prefix=/usr/local destdir='' from='' action=install purge='' yes='' start=1

usage() {
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
        --from | --prefix | --destdir)
            [ -n "${2-}" ] || die "$1 needs a directory"
            declare "${1#--}=$2"
            shift
            ;;
        --no-start) start='' ;;
        --uninstall) action=uninstall ;;
        --purge) purge=1 ;;
        --yes) yes=1 ;;
        --help | -h) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
[ -z "$purge" ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall"
# It is written into the unit.
[[ $prefix =~ ^/[A-Za-z0-9/._+-]*$ ]] || die "--prefix $prefix: an absolute path of letters, digits and /._+- is needed"
prefix=${prefix%/}
[[ -z "$destdir" || $destdir = /* ]] || destdir=$PWD/$destdir
destdir=${destdir%/}

bin=$prefix/bin
share=$destdir$prefix/share/condenser
config=$destdir/etc/raind/condenser.toml
case $prefix in
    /usr) unit=$destdir/usr/lib/systemd/system/condenser.service ;;
    *) unit=$destdir/etc/systemd/system/condenser.service ;;
esac

# Whether a service manager is there to be asked.
has_systemd() {
    [ -z "$destdir" ] && [ -d /run/systemd/system ]
}

# directory MODE PATH: makes it. One that is there keeps its mode.
directory() {
    [ -d "$destdir$2" ] || install -d -m "$1" "$destdir$2"
}

# staged TARGET: where its replacement is made.
staged() {
    printf '%s/.%s.new\n' "$(dirname "$1")" "$(basename "$1")"
}

# put MODE SOURCE TARGET: replaces the file as a whole, so that whoever runs or reads the old one keeps it. Fails when
# there was nothing to do.
put() {
    local mode=$1 source=$2 target=$3 staged
    if cmp -s "$source" "$target" && [ "$(stat -c %a "$target")" = "$mode" ] && [ ! -L "$target" ]; then return 1; fi
    # Always the same name: what a run that was killed left is replaced by the next.
    staged=$(staged "$target")
    # shellcheck disable=SC2064 # the name of now
    trap "rm -f ${staged@Q}" EXIT
    # Where this is called, errors do not end the script by themselves.
    { install -m "$mode" "$source" "$staged" && sync "$staged" && mv -fT "$staged" "$target"; } || die "cannot write $target"
    trap - EXIT
    printf '    %s\n' "${target#"$destdir"}"
}

# setting NAME DEFAULT: a path from the configuration.
setting() {
    local value
    value=$(sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*[\"']\([^\"']*\)[\"'].*/\1/p" "$config" 2> /dev/null | tail -n 1)
    printf '%s\n' "${value:-$2}"
}

# running PROGRAM: pids of processes that run it, also one that was replaced since. The runtime runs containers from a
# sealed copy of itself, which is called /droplet. What a container calls so, of whatever runtime, is not ours: it sees
# other files.
running() {
    local exe process
    for exe in /proc/[0-9]*/exe; do
        process=${exe%/exe}
        case $(readlink "$exe" 2> /dev/null || true) in
            "$bin/$1" | "$bin/$1 (deleted)" | "/$1")
                if [ "$process/ns/mnt" -ef /proc/self/ns/mnt ] || [ "$process/ns/mnt" -ef /proc/1/ns/mnt ]; then
                    basename "$process"
                fi
                ;;
        esac
    done
}

# Whether the daemon that runs is not the one that is installed.
outdated() {
    local pid
    for pid in $(running condenser); do
        [ "/proc/$pid/exe" -ef "$bin/condenser" ] || return 0
    done
    return 1
}

install_all() {
    local program path first='' changed='' unit_text reference=$share/condenser.toml
    if [ -z "$from" ]; then
        need_cargo
        say "building (the first time takes some minutes)"
        cargo build --release --locked --bins
        from=target/release
    fi
    # Before anything is touched.
    for program in "${programs[@]}"; do
        if [ ! -f "$from/$program" ] || [ ! -x "$from/$program" ]; then die "$from/$program: no such program"; fi
    done
    "$from/condenser" --version > /dev/null || die "$from/condenser does not run on this machine"
    if [ -z "$destdir" ]; then
        for program in iptables ip6tables iptables-restore ip6tables-restore; do
            command -v "$program" > /dev/null || die "$program is missing: the daemon needs it (Debian: apt install iptables)"
        done
    fi

    say "installing below ${destdir:-/}"
    # Written last of all: an installation that was cut off begins anew.
    [ -e "$reference" ] || first=1
    # Of docs/operations.md; the daemon makes them too, but a package should own them.
    for path in "" /container /image /pod /log /store /cert /volumes; do directory 700 "/etc/raind$path"; done
    directory 750 /var/log/raind
    for path in "$bin" "${share#"$destdir"}" "$(dirname "${unit#"$destdir"}")"; do directory 755 "$path"; done

    # The daemon last: those that it starts are there when it starts.
    for program in "${programs[@]}"; do
        if put 755 "$from/$program" "$destdir$bin/$program"; then changed=1; fi
    done
    unit_text=$(mktemp)
    sed "s|@bindir@|$bin|" assets/systemd/condenser.service > "$unit_text"
    if put 644 "$unit_text" "$unit"; then changed=1; fi
    rm -f "$unit_text"
    # One that is as the last version left it was not changed by anybody.
    if [ ! -e "$config" ] || cmp -s "$config" "$reference"; then
        if put 644 assets/condenser.toml "$config"; then changed=1; fi
    elif ! cmp -s "$config" assets/condenser.toml; then
        printf '    %s was changed and stays; the one of this version is %s\n' "${config#"$destdir"}" "${reference#"$destdir"}"
    fi
    if [ -z "$destdir" ] && outdated; then changed=1; fi

    if [ -n "$destdir" ]; then
        say "done"
    elif has_systemd; then
        start_service "$first" "$changed"
    elif [ -n "$(running condenser)" ]; then
        [ -z "$changed" ] || say "the daemon runs: restart it to make it the new one; containers go on running"
    else
        say "there is no systemd here; start the daemon as root with: $bin/condenser"
    fi
    if put 644 assets/condenser.toml "$reference" > /dev/null; then :; fi
}

# start_service FIRST CHANGED
start_service() {
    systemctl daemon-reload
    if [ -z "$start" ]; then
        say "the service was left as it is; systemctl restart condenser makes it the new one"
        return
    fi
    if [ -n "$1" ]; then
        say "starting the service"
        systemctl enable --quiet --now condenser.service || die "it does not start: journalctl -u condenser says why"
    elif [ -n "$2" ]; then
        say "restarting the service, if it runs; containers go on running"
        systemctl try-restart condenser.service || die "it does not start again: journalctl -u condenser says why"
    fi
    say "done; GET https://localhost:7755/v1/containers with /etc/raind/cert/raindClient.crt"
}

uninstall() {
    local path
    # No later than here, for it looks at the configuration and the programs.
    [ -z "$purge" ] || ask
    if has_systemd && [ -e "$unit" ]; then
        say "stopping the service"
        systemctl disable --quiet --now condenser.service || die "it does not stop: journalctl -u condenser says why"
    fi
    if [ -z "$destdir" ] && [ -n "$(running condenser)" ]; then
        die "the daemon runs, as process $(running condenser | xargs): end it first"
    fi
    if [ -n "$purge" ]; then
        purge_all
    elif [ -z "$destdir" ] && [ -n "$(running droplet)" ]; then
        say "containers go on running, and their data stays; --uninstall --purge would remove them"
    fi
    say "removing the programs"
    if [ -z "$purge" ] && cmp -s "$config" "$share/condenser.toml"; then rm -f "$config"; fi
    for path in "${programs[@]/#/$destdir$bin/}" "$share/condenser.toml" "$unit" "$config"; do rm -f "$(staged "$path")"; done
    for path in "${programs[@]/#/$destdir$bin/}" "$share/condenser.toml" "$unit"; do rm -f "$path"; done
    rmdir "$share" 2> /dev/null || true
    if has_systemd; then systemctl daemon-reload; fi
    if [ -n "$purge" ]; then
        say "done; nothing of it is left but the settings of the kernel (net.ipv4.ip_forward), which others may need"
    else
        if [ -e "$config" ]; then printf '    /etc/raind/condenser.toml was changed and stays\n'; fi
        say "done; what the daemon kept is still in /etc/raind and /var/log/raind"
    fi
}

ask() {
    local answer
    [ -z "$yes" ] || return 0
    [ -t 0 ] || die "--purge removes all containers, images and volumes: say --yes, or run it in a terminal"
    read -rp "Remove all containers, images, volumes, certificates and logs of Condenser? [y/N] " answer
    [[ $answer = [yY]* ]] || die "nothing was removed"
}

# Removes what the daemon made. The daemon does not run.
purge_all() {
    local root log run directory name
    root=$(setting root_dir /etc/raind) log=$(setting log_dir /var/log/raind) run=$(setting run_dir /run/raind)
    if [ -z "$destdir" ]; then
        say "ending all containers"
        end_containers "$root/container"
        say "removing rules, interfaces and cgroups"
        remove_rules
        remove_links
        for directory in $(cgroups); do find "$directory" -depth -type d -exec rmdir {} + 2> /dev/null || true; done
        if grep -qs '^raind-default ' /sys/kernel/security/apparmor/profiles; then
            apparmor_parser -R "$root/lsm/apparmor/raind-default" || true
        fi
    fi
    say "removing what is ours in $root, $log and $run"
    # An own directory may be shared with others (log_dir = "/var/log"): of it only what the daemon makes.
    for name in cert container image log lsm pod store volumes; do remove "$root/$name"; done
    for name in "$destdir$log"/raind_*.jsonl*; do remove "${name#"$destdir"}"; done
    for directory in /etc/raind /var/log/raind /run/raind; do remove "$directory"; done
    for directory in "$root" "$log" "$run"; do rmdir "$destdir$directory" 2> /dev/null || true; done
}

# remove PATH: with all beneath it. What is mounted there is not followed, and one that is a mount point itself stays.
remove() {
    local path=$destdir$1 mount
    if [ -L "$path" ]; then rm -f "$path"; fi
    [ -e "$path" ] || return 0
    # A bind mount of the same file system is no boundary for find: it would empty what stands behind a volume.
    if [ -z "$destdir" ]; then
        awk -v beneath="$(realpath "$path")/" 'index($5, beneath) == 1 { print $5 }' /proc/self/mountinfo | tac |
            while read -r mount; do
                printf -v mount %b "$mount"
                umount --lazy --no-canonicalize "$mount" || die "$mount cannot be unmounted"
            done
    fi
    find "$path" -xdev -mindepth 1 -delete || die "$1 cannot be removed as a whole"
    rm -f "$path" 2> /dev/null || rmdir "$path" 2> /dev/null || true
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

# end_containers DIRECTORY: by the runtime, then whatever is left of it.
end_containers() {
    local path id pid try
    for path in "$1"/*/; do
        [ -d "$path" ] || continue
        id=$(basename "$path")
        RAIND_ROOT_DIR=$1 timeout 15 "$bin/droplet" kill "$id" KILL > /dev/null 2>&1 || true
        # Its hooks report to the daemon, which is not there.
        RAIND_ROOT_DIR=$1 timeout 30 "$bin/droplet" delete "$id" > /dev/null 2>&1 || true
    done
    for try in $(seq 50); do
        [ -n "$(left_running)" ] || return 0
        if [ "$try" -ge 25 ]; then
            for pid in $(left_running); do kill -KILL "$pid" 2> /dev/null || true; done
        fi
        sleep 0.2
    done
    die "these processes of containers do not end: $(left_running | xargs)"
}

# left_running: pids of monitors, and of whatever is in a cgroup of a container.
left_running() {
    running droplet
    local directory
    for directory in $(cgroups); do
        find "$directory" -name cgroup.procs -exec cat {} + 2> /dev/null || true
    done | sort -u
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

remove_links() {
    local link
    for link in $("$bin/condenser" networks 2> /dev/null || true) raind0 raindDns; do
        ip link delete "$link" 2> /dev/null || true
    done
    # Ends of interface pairs whose container did not take them along.
    for link in $(ip -oneline link show type veth | sed -n 's/^[0-9]*: \(rd_[0-9a-hjkmnp-tv-z]\{12\}\)[:@].*/\1/p'); do
        ip link delete "$link" 2> /dev/null || true
    done
}

[ -n "$destdir" ] || need_root "$@"
umask 022
"$([ "$action" = install ] && echo install_all || echo uninstall)"
