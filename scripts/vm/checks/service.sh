# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# The daemon and the service manager come and go beside running containers.

guest_service() {
    local before running
    stock
    guest_service_reload
    before=$(states)
    restart_daemon
    check "restart: containers stay, same processes" "$before" "$(states)"
    kill -KILL "$(main_pid)"
    sleep 4
    within 120 served
    check "SIGKILL: systemd starts it again, containers stay" "$before" "$(states)"
    running=$(pgrep -fc '^sleep 100000')
    systemctl stop condenser
    check "stop: containers stay" "$running" "$(pgrep -fc '^sleep 100000')"
    systemctl daemon-reload
    check "stop, daemon-reload: limits stay" "67108864 50000 100000 20" "$(limits)"
    systemctl start condenser
    within 120 served
    check "start: containers are taken over" "$before" "$(states)"
    guest_service_watchdog "$before"
}

# Those of the container `limited`, read without the daemon.
limits() { cat /sys/fs/cgroup/raind/"$LIMITED"/{memory.max,cpu.max,pids.max} | xargs; }

guest_service_reload() {
    local before controllers=(/sys/fs/cgroup/cgroup.subtree_control /sys/fs/cgroup/raind/cgroup.subtree_control)
    LIMITED=$(field limited containerId)
    before="$(limits) $(cat "${controllers[@]}" | xargs) $(states)"
    systemctl daemon-reload
    systemctl daemon-reexec
    systemctl restart systemd-networkd systemd-journald
    systemctl set-property --runtime registry.service CPUWeight=50
    sleep 5
    check "daemon-reload, daemon-reexec, restarts of others: groups, limits, processes stay" "$before" \
        "$(limits) $(cat "${controllers[@]}" | xargs) $(states)"
    check "after them a container starts" "running 67108864" \
        "$(container after '"image":"busybox:latest","command":["sleep","100000"],"memory":67108864'; field after state) $(cat "$(group after)/memory.max")"
    remove after
}

guest_service_watchdog() {
    local pid
    pid=$(main_pid)
    kill -STOP "$pid"
    within 200 eval "[ \"\$(main_pid)\" != $pid ] && [ \"\$(main_pid)\" != 0 ]"
    within 120 served
    check "a daemon that hangs is restarted by the watchdog" "*Watchdog timeout*" "$(journalctl -u condenser -o cat --no-pager | grep 'Watchdog timeout' | tail -1)"
    check "watchdog: containers stay" "$1" "$(states)"
}
