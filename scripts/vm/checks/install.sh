# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Installation, the unit, images from a registry over TLS.

host_install() {
    # The scan hears of closed UDP ports by messages that the kernel would limit.
    machine sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=100000 < /dev/null
    in_net python3 "$here/scan.py" > "$state/scan.bare"
    in_machine guest_install
}

guest_install() {
    local since image
    since=$(now)
    mountpoint -q /payload || mount /payload
    note "versions" "$(. /etc/os-release && echo "$PRETTY_NAME"), Linux $(uname -r), $(systemctl --version | head -1), $(iptables --version), $(ufw version 2> /dev/null | head -1), firewalld $(dpkg-query -W -f '${Version}' firewalld), cgroup: $(stat -fc %T /sys/fs/cgroup), LSM: $(cat /sys/kernel/security/lsm)"
    note "program" "$(/payload/bin/condenser --version)"
    note "boot" "$(systemd-analyze | head -1)"
    (cd /payload/src && scripts/install.sh --from /payload/bin)
    check "install.sh --from" 0 $?
    check "the service is enabled and active" "enabled active" "$(systemctl is-enabled condenser) $(systemctl is-active condenser)"
    check "Type=notify, status text" "notify serving on 127.0.0.1:7755" "$(systemctl show -P Type condenser) $(systemctl show -P StatusText condenser)"
    check "watchdog" 1min "$(systemctl show -P WatchdogUSec condenser)"
    journalctl -u condenser --no-pager -o cat
    check "warnings and errors in the log of the first start" "" "$(complaints "$since")"
    check "systemd-analyze verify" "" "$(systemd-analyze verify condenser.service 2>&1)"
    check "what systemd says of the unit" "" "$(journalctl -u condenser -o cat --no-pager _COMM=systemd | grep -v -E '^(Starting|Started) ')"
    guest_install_again
    within 60 curl -s -o /dev/null https://registry-1.docker.io/v2/
    for image in busybox debian; do
        check "pull $image over TLS, authority of the system's store" "pull completed" "$(api /images -d "{\"image\":\"$image:latest\"}" | jq -r .message)"
    done
}

guest_install_again() {
    local pid
    pid=$(main_pid)
    (cd /payload/src && scripts/install.sh --from /payload/bin) > /dev/null
    check "install.sh again: the daemon is not restarted" "$pid" "$(main_pid)"
    systemctl reload condenser
    check "reload" 0 $?
    within 30 eval "journalctl -u condenser -o cat --no-pager | grep -q 'log files reloaded'"
    check "reload is in the log" 1 "$(journalctl -u condenser -o cat --no-pager | grep -c 'log files reloaded')"
}
