# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Removal: the programs first, containers stay; installed again they are taken over; then everything.

guest_uninstall() {
    local before programs
    stock
    before=$(running) programs=$(pgrep -fc '^sleep 100000')
    (cd /payload/src && scripts/install.sh --uninstall)
    check "uninstall" 0 $?
    check "uninstall: no unit, no program" "" "$(ls /etc/systemd/system/condenser.service /usr/local/bin/{condenser,droplet,condenser-hook-agent} 2> /dev/null)"
    check "uninstall: containers go on running" "$programs" "$(pgrep -fc '^sleep 100000')"
    (cd /payload/src && scripts/install.sh --from /payload/bin)
    within 120 served
    check "installed again: containers are taken over" "$before" "$(running)"
    (cd /payload/src && scripts/install.sh --uninstall)
    (cd /payload/src && scripts/install.sh --uninstall --purge --yes)
    check "uninstall, then purge" 0 $?
    check "purge: rules" 0 "$({ iptables-save; ip6tables-save; nft list ruleset; } 2> /dev/null | grep -ci raind)"
    check "purge: interfaces" "" "$(ip -o link | grep -oE ' (raind|rd_)[^:]*')"
    check "purge: cgroups" "" "$(ls -d /sys/fs/cgroup/raind 2> /dev/null)"
    check "purge: mounts" 0 "$(grep -c raind /proc/self/mountinfo)"
    check "purge: files" "" "$(find / /run /tmp -xdev -path /var/log/journal -prune -o \( -iname '*raind*' -o -iname '*condenser*' \) -print)"
    check "purge: AppArmor's profile" 0 "$(grep -c '^raind-default ' /sys/kernel/security/apparmor/profiles)"
    check "purge: processes" 0 "$(pgrep -c 'droplet|condenser')"
    check "purge: failed units" "" "$(systemctl --failed --no-legend)"
}
