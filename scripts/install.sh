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
# shellcheck source=scripts/removal.sh
. scripts/removal.sh

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
# As /proc shows it.
daemon=$(realpath -m "$bin")/condenser
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

# Refuses while a daemon runs that is not the one of this prefix: both would have the same data, rules and ports.
no_other_daemon() {
    local pid program
    if read -r pid program < <(daemons "$daemon"); then
        die "another daemon runs: $program, as process $pid; end it first (kill $pid; its containers go on running)"
    fi
}

# Refuses to take from another installation what it has its containers in.
no_other_installation() {
    local others
    no_other_daemon
    others=$(installations "$bin" | xargs)
    [ -z "$others" ] || die "the data belongs to another installation, too: $others; --uninstall that one first"
}

# Whether the daemon that runs is not the one that is installed.
outdated() {
    local pid
    for pid in $(running "$daemon"); do
        [ "/proc/$pid/exe" -ef "$bin/condenser" ] || return 0
    done
    return 1
}

install_all() {
    local program path first='' changed='' unit_text reference=$share/condenser.toml
    if [ -z "$from" ]; then
        need_cargo build
        build release
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
        no_other_daemon
        # From now on it is an installation: quickstart.sh --clean has no right to it any more.
        rm -f /etc/raind/.quickstart
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
    elif [ -n "$(running "$daemon")" ]; then
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
    if [ -n "$purge" ]; then
        [ -n "$destdir" ] || no_other_installation
        # No later than here, for it looks at the configuration and the programs.
        ask
    fi
    if has_systemd && [ -e "$unit" ]; then
        say "stopping the service"
        systemctl disable --quiet --now condenser.service || die "it does not stop: journalctl -u condenser says why"
    fi
    if [ -z "$destdir" ] && [ -n "$(running "$daemon")" ]; then
        die "the daemon runs, as process $(running "$daemon" | xargs): end it first"
    fi
    if [ -n "$purge" ]; then
        purge_all
    elif [ -z "$destdir" ] && [ -n "$(running /droplet)" ]; then
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
        say "ending all containers, removing rules, interfaces and cgroups"
        remove_kernel_objects "$root" "$bin/droplet"
    fi
    say "removing what is ours in $root, $log and $run"
    # An own directory may be shared with others (log_dir = "/var/log"): of it only what the daemon makes.
    for name in cert container image log lsm pod store volumes; do remove "$root/$name" "$destdir"; done
    for name in "$destdir$log"/raind_*.jsonl*; do remove "${name#"$destdir"}" "$destdir"; done
    for directory in /etc/raind /var/log/raind /run/raind; do remove "$directory" "$destdir"; done
    for directory in "$root" "$log" "$run"; do rmdir "$destdir$directory" 2> /dev/null || true; done
}

[ -n "$destdir" ] || need_root "$@"
umask 022
"$([ "$action" = install ] && echo install_all || echo uninstall)"
