# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# The machine is restarted in order, then reset while things come and go.

host_reboot() {
    local start
    in_machine guest_before_reboot
    start=$SECONDS
    machine systemctl reboot < /dev/null || true
    within 600 grep -aq 'reboot: Restarting system' "$state/serial.log" || true
    note "reboot: seconds from the request to the restart of the machine" "$((SECONDS - start))"
    after_restart reboot
}

guest_before_reboot() {
    stock
    container never '"image":"busybox:latest","command":["sleep","100000"]'
    container userstop '"image":"busybox:latest","command":["sleep","100000"],"restartPolicy":{"name":"always"}'
    api /containers/userstop/actions/stop -X POST > /dev/null
}

# after_restart NAME: what has to be there again.
after_restart() {
    await_machine
    in_machine guest_after_restart "$1"
    check "$1: outside to published port" page "$(in_net curl -s -m 30 http://192.0.2.2:8080/)"
    check "$1: outside to service" "[0-9a-z]*" "$(in_net curl -s -m 30 http://192.0.2.2:11240/pod.txt)"
}

those_with_always() { [ "$(always)" = "cli debian ok web" ]; }
always() { api /containers | jq -r '[.data[] | select(.state == "running" and (.name | test("^(cli|debian|ok|web)$"))) | .name] | sort | join(" ")'; }

guest_after_restart() {
    within 300 served
    within 300 those_with_always
    within 300 set_has 4
    note "$1: boot" "$(systemd-analyze | head -1)"
    journalctl -b -u condenser -o short-monotonic --no-pager
    check "$1: containers that are restarted always run" "cli debian ok web" "$(always)"
    check "$1: others are stopped, and why" "-1 Error process down detected: the host was restarted." "$(summary never '"\(.exitCode) \(.reason) \(.message)"')"
    check "$1: one that the user stopped stays so" stopped "$(field userstop state)"
    check "$1: pods are ready" "4 4" "$(api /replicasets/shop | jq -r '.data | "\(.current) \(.ready)"')"
    check "$1: confined" "raind-default (enforce)" "$(confinement debian)"
    guest_consistent "$1"
    guest_flows "$1"
}

# guest_consistent WHEN: rows, directories, groups, interfaces and processes agree.
guest_consistent() {
    local rows links processes
    rows=$(api /containers | jq -r '[.data[].containerId] | sort | join(" ")')
    check "$1: directories are those of the rows" "$rows" "$(find /etc/raind/container -mindepth 1 -maxdepth 1 -printf '%f\n' | sort | xargs)"
    rows=$(api /containers | jq -r '[.data[] | select(.state == "running") | .containerId] | sort | join(" ")')
    check "$1: groups with processes are those of running containers" "$rows" \
        "$(find /sys/fs/cgroup/raind -mindepth 1 -maxdepth 1 -type d ! -name _monitors -printf '%f\n' | while read -r id; do [ -z "$(cat "/sys/fs/cgroup/raind/$id/cgroup.procs")" ] || echo "$id"; done | sort | xargs)"
    links=$(ip -o link show type veth | grep -c ' rd_')
    check "$1: interface pairs, one for each address in use" "$(api /containers | jq '[.data[] | select(.state == "running") | .address] | unique | length')" "$links"
    processes=$(find /sys/fs/cgroup/raind -mindepth 2 -name cgroup.procs ! -path '*/_monitors/*' -exec cat {} + | while read -r id; do grep -q '^NSpid:.*[[:space:]]1$' "/proc/$id/status" && echo "$id"; done | wc -l)
    check "$1: first processes of containers" "$(running)" "$processes"
}

host_reset() {
    in_machine guest_load
    monitor system_reset
    sleep 5
    await_machine
    in_machine guest_after_reset
    after_restart reset
}

# Things come and go until the machine is reset.
guest_load() {
    {
        declare -f api create start container remove
        cat << 'LOAD'
i=0
while :; do
    i=$((i + 1))
    (container "load$i" '"image":"busybox:latest","command":["sh","-c","dd if=/dev/zero of=/big bs=1M count=20; sleep 1000"],"port":["'$((12000 + i))':80"]'
        [ $((i % 3)) != 0 ] || remove "load$i") &
    (api /replicasets/shop/actions/scale -X POST -d '{"replicas":'$((3 + i % 3))'}' > /dev/null) &
    (tar -cf - -C /payload/src/assets/demo Dripfile index.html -C /bin busybox | api "/images/build?tag=load:$i" --data-binary @- > /dev/null) &
    wait
done
LOAD
    } > /root/load.sh
    systemd-run -q --unit load bash /root/load.sh
    within 300 eval "api /containers | jq -e '[.data[] | select(.name | startswith(\"load\"))] | length > 3'"
    api /containers | jq -r '.data[] | "\(.name) \(.state)"'
}

guest_after_reset() {
    within 300 served
    api /replicasets/shop/actions/scale -X POST -d '{"replicas":4}' > /dev/null
    within 120 eval "[ \"\$(half_made)\" = 0 ]"
    api /containers | jq -r '.data[] | select(.name | startswith("load")) | "\(.name) \(.state) \(.reason) \(.message)"'
    note "reset: file system" "$(journalctl -k -b --no-pager -o cat | grep -iE 'EXT4-fs|orphan|recover' | head -3)"
    check "reset: containers of the load that are neither whole nor gone" 0 "$(half_made)"
    # shellcheck disable=SC2046 # words
    remove $(api /containers | jq -r '.data[] | select(.name | startswith("load")) | .name')
    container load1 '"image":"busybox:latest","command":["sleep","1000"],"port":["12001:80"]'
    check "reset: a name and a port of before can be used again" running "$(field load1 state)"
    remove load1
}

half_made() { api /containers | jq '[.data[] | select((.name | startswith("load")) and (.state | IN("running", "stopped", "created") | not))] | length'; }
