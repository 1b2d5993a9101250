#!/usr/bin/env bash
# From a clone to a service that answers:
#
#   scripts/quickstart.sh           builds Condenser, starts it, builds an image offline from assets/demo/Dripfile, applies
#                                   assets/demo/shop.yaml (two pods and a service), calls the service, scales it to four
#                                   pods, kills one of them and waits for its return
#   scripts/quickstart.sh --clean   takes all of it away again
#
# It may be run again at any time. It writes to Condenser's own places (/etc/raind, /var/log/raind, /run/raind) and to
# this clone, and installs the Debian packages that are missing. The service listens on port 11240.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

image=demo:1
manifest=assets/demo/shop.yaml
service=http://127.0.0.1:11240
run=/run/raind/quickstart
pidfile=/run/raind/condenser.pid
log=/var/log/raind/condenser.log
# Says that this script made /etc/raind, so that --clean may remove it.
mark=/etc/raind/.quickstart

# Calls the API: api METHOD PATH [BODY], the body as curl's --data-binary takes it. Prints the answer; fails with the daemon's message.
api() {
    local answer
    answer=$(curl --silent --show-error --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
        --key /etc/raind/cert/raindClient.key -X "$1" ${3:+--data-binary "$3"} "https://localhost:7755$2") || return
    if [ "$(jq -r '.status' <<< "$answer" 2> /dev/null)" = fail ]; then
        jq -r '.message' <<< "$answer" >&2
        return 1
    fi
    printf '%s\n' "$answer"
}

# alive FILE: whether the process whose pid the file holds runs that program: alive FILE PROGRAM.
alive() {
    [ -f "$1" ] && [[ "$(readlink "/proc/$(< "$1")/exe" 2> /dev/null)" == "$2"* ]]
}

# Ends the process of a pid file and waits for it.
end() {
    local pid
    pid=$(< "$1")
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 100); do
        [ -d "/proc/$pid" ] || break
        sleep 0.1
    done
    rm -f "$1"
}

# wait_for WHAT LOG COMMAND...: until the command succeeds, at most 30 seconds.
wait_for() {
    local what=$1 log=$2
    shift 2
    for _ in $(seq 300); do
        if "$@" > /dev/null 2>&1; then return; fi
        sleep 0.1
    done
    tail -n 20 "$log" >&2 || true
    die "$what did not come up; its log is $log"
}

# ready N: whether the set has that many pods, and all of them are ready.
ready() {
    api GET /v1/replicasets/shop | jq -e ".data | .current == $1 and .ready == $1"
}

# Each pod answers with its name.
call() {
    for _ in 1 2 3 4 5 6; do curl --silent --fail --max-time 5 "$service/pod.txt"; done | sort | uniq -c
}

clean() {
    local link
    if alive "$pidfile" "$PWD/target/release/condenser"; then
        say "removing the service, the pods and the image"
        api POST /v1/resource/delete "@$manifest" > /dev/null 2>&1 || true
        api DELETE /v1/images "{\"image\":\"$image\"}" > /dev/null 2>&1 || true
        say "stopping the daemon"
        end "$pidfile"
    fi
    if [ -f "$mark" ]; then
        say "removing what the daemon made: its rules, bridges, cgroups and directories"
        for family in iptables ip6tables; do
            if "$family-save" | grep -q RAIND; then "$family-save" | grep -v RAIND | "$family-restore"; fi
        done
        for link in $(ip -brief link show type bridge | awk '$1 ~ /^raind/ { print $1 }'); do ip link delete "$link"; done
        rmdir /sys/fs/cgroup/raind /sys/fs/cgroup/*/raind 2> /dev/null || true
        while read -r value file; do echo "$value" > "$file" || true; done < "$run/sysctls"
        # One of them may be a mount point, which stays.
        for directory in /etc/raind /var/log/raind /run/raind; do
            find "$directory" -mindepth 1 -delete
            rmdir "$directory" 2> /dev/null || true
        done
    fi
    rm -rf "$run"
    say "done; the packages and target/ were left as they are"
}

start_daemon() {
    if alive "$pidfile" "$PWD/target/release/condenser (deleted)"; then
        say "the daemon was built anew: restarting it"
        end "$pidfile"
    fi
    if alive "$pidfile" "$PWD/target/release/condenser"; then
        say "the daemon runs already"
        return
    fi
    # Only the marked ones are ours to remove later.
    if [ -z "$(ls -A /etc/raind 2> /dev/null)" ]; then
        install -d -m 700 /etc/raind "$run"
        touch "$mark"
        for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables; do
            if [ -f "$file" ]; then echo "$(< "$file") $file"; fi
        done > "$run/sysctls"
    fi
    say "starting the daemon"
    mkdir -p /var/log/raind
    setsid target/release/condenser < /dev/null >> "$log" 2>&1 &
    echo $! > "$pidfile"
    wait_for "the daemon" "$log" api GET /v1/containers
}

need_root "$@"
case ${1-} in
    '') ;;
    --clean) clean && exit 0 ;;
    *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
trap 'printf "\nerror: line %s failed; scripts/quickstart.sh --clean removes what is there\n" "$LINENO" >&2' ERR

need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq cc=build-essential busybox=busybox-static
need_cargo

say "building (the first time takes some minutes)"
cargo build --release --locked --bins
start_daemon

say "POST /v1/images/build: building $image from assets/demo/Dripfile"
install -d -m 700 "$run"
tar -cf "$run/context.tar" -C "$PWD/assets/demo" Dripfile index.html -C "$(dirname "$(command -v busybox)")" busybox
api POST "/v1/images/build?tag=$image" "@$run/context.tar"

say "POST /v1/resource/apply: applying $manifest"
api POST /v1/resource/apply "@$manifest"
wait_for "the two pods" "$log" ready 2

say "GET /v1/pods"
api GET /v1/pods | jq -r '.data[] | [.name, .state, "\(.runningContainers)/\(.desiredContainers)"] | @tsv'

say "GET $service/, six times"
wait_for "the service" "$log" curl --silent --fail --max-time 5 "$service/pod.txt"
call

say "POST /v1/replicasets/shop/actions/scale: four pods"
api POST /v1/replicasets/shop/actions/scale '{"replicas":4}'
wait_for "four pods" "$log" ready 4
call

victim=$(api GET /v1/containers | jq '[.data[] | select(.state == "running" and (.name | startswith("web-")))][0]')
say "killing the web server of one pod: $(jq -r .name <<< "$victim")"
kill -9 "$(jq -r .pid <<< "$victim")"
# restarted ID: whether the container was started again.
restarted() {
    api GET "/v1/containers/$1" | jq -e '.data | .state == "running" and .restartCount > 0'
}
wait_for "the killed web server" "$log" restarted "$(jq -r .containerId <<< "$victim")"
wait_for "four pods" "$log" ready 4
say "it is back"
api GET /v1/pods | jq -r '.data[] | [.name, .state, "\(.runningContainers)/\(.desiredContainers)"] | @tsv'

cat << END

It runs. How to go on:

  alias raind-curl='curl --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt --key /etc/raind/cert/raindClient.key'
  raind-curl https://localhost:7755/v1/replicasets/shop
  raind-curl https://localhost:7755/v1/services/shop
  raind-curl -X POST https://localhost:7755/v1/resource/delete --data-binary @$manifest

The daemon's log is $log. To remove everything again: scripts/quickstart.sh --clean
END
