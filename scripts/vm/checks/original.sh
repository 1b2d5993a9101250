# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# The original's low-level runtime under this daemon, and its command line against it: DIR of --peer has them as
# `droplet` and `raind`.

guest_original() {
    if [ -x /payload/peer/raind ]; then guest_original_cli; else not_run "the original's command line" "no raind in --peer DIR"; fi
    if [ ! -x /payload/peer/droplet ]; then
        not_run "the original's droplet" "no droplet in --peer DIR"
        return
    fi
    mkdir -p /run/systemd/system/condenser.service.d
    printf '[Service]\nEnvironment=CONDENSER_DROPLET=/payload/peer/droplet\n' > /run/systemd/system/condenser.service.d/droplet.conf
    systemctl daemon-reload
    restart_daemon
    guest_original_droplet
    rm -r /run/systemd/system/condenser.service.d
    systemctl daemon-reload
    restart_daemon
    guest_consistent "after the original's runtime"
}

guest_original_droplet() {
    check "droplet: create and start" "" "$(container orig '"image":"busybox:latest","command":["sh","-c","echo from-the-original; trap \"exit 3\" TERM; while :; do sleep 1; done"],"memory":67108864')"
    within 30 log_has orig from-the-original
    check "droplet: state, log" "running *from-the-original*" "$(field orig state) $(api /containers/orig/log)"
    check "droplet: memory limit" 67108864 "$(api /containers/orig/stats | jq -r .data.memory_max_bytes)"
    api /containers/orig/actions/exec -d '{"command":["sh","-c","echo executed > /tmp/y"]}' > /dev/null
    within 30 test -s "/proc/$(field orig pid)/root/tmp/y"
    check "droplet: exec" executed "$(cat "/proc/$(field orig pid)/root/tmp/y" 2>&1)"
    api /containers/orig/actions/stop -X POST > /dev/null
    within 30 is_stopped orig
    check "droplet: stop" stopped "$(field orig state)"
    check "droplet: delete" "" "$(remove orig)"
    check "droplet: containers of the own runtime go on" running "$(field debian state)"
}

guest_original_cli() {
    local raind=/payload/peer/raind
    check "raind: image pull" "*pull completed*" "$("$raind" image pull busybox:latest 2>&1)"
    check "raind: image ls" "*busybox*" "$("$raind" image ls 2>&1)"
    check "raind: container run" "*started*" "$("$raind" container run --name cliweb busybox:latest /bin/sh -c 'echo hello-from-web; trap "exit 0" TERM; while :; do sleep 1; done' 2>&1)"
    within 30 log_has cliweb hello-from-web
    check "raind: container logs" "*hello-from-web*" "$("$raind" container logs cliweb 2>&1)"
    check "raind: container ls" "*running*cliweb*" "$("$raind" container ls 2>&1)"
    check "raind: container exec, stop, start, stop, rm" "0 0 0 0 0" "$(
        for arguments in 'exec cliweb /bin/true' 'stop cliweb' 'start cliweb' 'stop cliweb' 'rm cliweb'; do
            # shellcheck disable=SC2086 # words
            "$raind" container $arguments > /dev/null 2>&1
            echo $?
        done | xargs)"
    check "raind: policy ls" "*DENY ALL EAST-WEST*" "$("$raind" policy ls 2>&1)"
}
