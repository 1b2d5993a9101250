# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# AppArmor: who is confined, what is refused, and what happens when others unload the profile.

guest_apparmor() {
    local profile='raind-default (enforce)'
    stock
    check "the profile is loaded" "$profile" "$(grep '^raind-default ' /sys/kernel/security/apparmor/profiles)"
    check "the container's process is confined" "$profile" "$(confinement plain)"
    check "its monitor is not" unconfined "$(cat "/proc/$(ps -o ppid= "$(field plain pid)" | xargs)/attr/current")"
    check "exec is confined" "$profile*" "$(inside plain cat /proc/self/attr/current)"
    container made '"image":"debian:latest","command":["bash","-c","exec sleep 1000"],"capAdd":["SYS_ADMIN","SYS_PTRACE"]'
    check "with CAP_SYS_ADMIN: confined" "$profile*" "$(inside made cat /proc/self/attr/current)"
    # The mount is made writable first, for otherwise AppArmor would not be asked.
    nsenter -t "$(field made pid)" -m mount -o remount,rw,bind /proc/sys
    check "a write to /proc/sys, not read-only, CAP_SYS_ADMIN" "*Permission denied*" "$(inside made bash -c 'echo 10 > /proc/sys/kernel/panic' 2>&1)"
    check "mount, CAP_SYS_ADMIN" "-1 @(Permission denied|Operation not permitted)*" "$(inside made python3 -c 'import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b"t", b"/mnt", b"tmpfs", 0, None), os.strerror(ctypes.get_errno()))' 2>&1)"
    remove made
    systemctl reload apparmor && systemctl restart apparmor
    check "apparmor.service reloaded and restarted: still confined" "$profile" "$(confinement plain)"
    guest_apparmor_unloaded
    guest_apparmor_required
    guest_apparmor_removed
    # Those that lost their confinement begin anew.
    remove plain limited debian
    stock
}

guest_apparmor_unloaded() {
    local since profile='raind-default (enforce)'
    since=$(now)
    aa-remove-unknown > /dev/null 2>&1
    note "aa-remove-unknown: running containers are then" "$(confinement plain)"
    container bare '"image":"busybox:latest","command":["sleep","1000"]'
    check "aa-remove-unknown: a new container is confined" "$profile" "$(confinement bare)"
    check "aa-remove-unknown: exec in the new container is confined" "$profile*" "$(inside bare cat /proc/self/attr/current)"
    check "aa-remove-unknown: the log says that the profile was gone" "*[Aa]pp[Aa]rmor*" "$(journalctl -u condenser -o cat --no-pager --since "@$since" | grep -i apparmor | head -3)"
    remove bare
    since=$(now)
    apparmor_parser -R /etc/raind/lsm/apparmor/raind-default
    api /containers/plain/actions/stop -X POST > /dev/null
    start plain
    check "the profile is unloaded, a container is started again: it is confined" "$profile" "$(confinement plain)"
    systemctl restart apparmor
    aa-remove-unknown > /dev/null 2>&1
    restart_daemon
    check "unloaded, the daemon restarted: the profile is there" "$profile" "$(grep '^raind-default ' /sys/kernel/security/apparmor/profiles)"
}

guest_apparmor_required() {
    local profile='raind-default (enforce)'
    printf '\nrequire_apparmor = true\n' >> /etc/raind/condenser.toml
    restart_daemon
    container must '"image":"busybox:latest","command":["sleep","1000"]'
    check "require_apparmor: a container" "$profile" "$(confinement must)"
    aa-remove-unknown > /dev/null 2>&1
    container again '"image":"busybox:latest","command":["sleep","1000"]' || true
    check "require_apparmor, the profile is gone: confined or refused" "@($profile|refused)" "$(unconfined_or again)"
    check "require_apparmor, the profile is gone: exec is confined or refused" "@($profile*|*AppArmor*)" "$(inside must cat /proc/self/attr/current 2>&1)"
    remove must again
}

# unconfined_or NAME: how it is confined, or that it does not run.
unconfined_or() {
    if [ "$(field "$1" state)" = running ]; then confinement "$1"; else echo refused; fi
}

# The profile cannot be loaded again, for its parser is away.
guest_apparmor_removed() {
    local since refusal parser
    since=$(now)
    parser=$(command -v apparmor_parser)
    aa-remove-unknown > /dev/null 2>&1
    mv "$parser" "$parser.away"
    refusal=$(container never '"image":"busybox:latest","command":["sleep","1000"]')
    check "require_apparmor, the profile cannot be loaded: refused" refused "$(unconfined_or never)"
    check "the same: the refusal says so" "*[Aa]pp[Aa]rmor*" "$refusal"
    sed -i '/^require_apparmor/d' /etc/raind/condenser.toml
    restart_daemon
    container loose '"image":"busybox:latest","command":["sleep","1000"]'
    check "not required, the profile cannot be loaded: runs, and the log says so" "running *[Aa]pp[Aa]rmor*" "$(field loose state) $(complaints "$since" | grep -i apparmor | tail -1)"
    mv "$parser.away" "$parser"
    remove never loose
    restart_daemon
    check "the parser is back: the profile is loaded" 1 "$(grep -c '^raind-default ' /sys/kernel/security/apparmor/profiles)"
}
