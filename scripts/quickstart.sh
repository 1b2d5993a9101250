#!/usr/bin/env bash
# From a clone to a service that answers:
#
#   scripts/quickstart.sh [--from DIR]
#       builds Condenser (--from: takes the programs from DIR), starts it, builds an image offline from
#       assets/demo/Dripfile, applies assets/demo/shop.yaml (two pods and a service), calls the service, scales it to
#       four pods, kills one of them and waits for its return
#   scripts/quickstart.sh --clean [--dry-run | --yes]
#       takes all of it away again: says what it would remove, and asks if it runs in a terminal (--yes: does not).
#       It refuses when there is anything that the quickstart did not make
#
# It may be run again at any time. It writes to Condenser's own places (/etc/raind, /var/log/raind, /run/raind) and to
# this clone, and installs the Debian packages that are missing. The service listens on port 11240. It is for machines
# without Condenser: an installation is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh
# shellcheck source=scripts/removal.sh
. scripts/removal.sh

image=demo:1
manifest=assets/demo/shop.yaml
service=http://127.0.0.1:11240
run=/run/raind/quickstart
log=/var/log/raind/condenser.log
# Says that a quickstart made what is in /etc/raind. install.sh takes it away.
mark=/etc/raind/.quickstart
from='' action=start dry_run='' yes=''

# Calls the API: api METHOD PATH [BODY], the body as curl's --data-binary takes it. Prints the answer; fails with the
# daemon's message.
api() {
    local answer
    answer=$(curl --silent --show-error --max-time 300 --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
        --key /etc/raind/cert/raindClient.key -X "$1" ${3:+--data-binary "$3"} "https://localhost:7755$2") || return
    if [ "$(jq -r '.status' <<< "$answer" 2> /dev/null)" = fail ]; then
        jq -r '.message' <<< "$answer" >&2
        return 1
    fi
    printf '%s\n' "$answer"
}

# our_daemon: pid of the daemon that a quickstart started, if it runs.
our_daemon() {
    local pid
    pid=$(cat "$run/pid" 2> /dev/null) || return
    [ -n "$pid" ] && [ "$(program_of "$pid")" = "$(cat "$run/program" 2> /dev/null)" ] && printf '%s\n' "$pid"
}

# end PID: ends a process and waits for it. Operations in progress get 30 seconds.
end() {
    kill "$1" 2> /dev/null || true
    for _ in $(seq 400); do
        [ -d "/proc/$1" ] || return 0
        sleep 0.1
    done
    die "process $1 does not end"
}

# wait_for WHAT COMMAND...: until the command succeeds, at most 30 seconds.
wait_for() {
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@" > /dev/null 2>&1; then return; fi
        sleep 0.1
    done
    tail -n 20 "$log" >&2 || true
    die "$what did not come up; the daemon's log is $log"
}

# ready N: whether the set has that many pods, and all of them are ready.
ready() {
    api GET /v1/replicasets/shop | jq -e ".data | .current == $1 and .ready == $1"
}

# Each pod answers with its name.
call() {
    for _ in 1 2 3 4 5 6; do curl --silent --fail --max-time 5 "$service/pod.txt"; done | sort | uniq -c
}

# others: what of Condenser is on this machine, or in the daemon's state, that no quickstart made; one thing a line.
others() {
    local pid program ours directory
    ours=$(our_daemon || true)
    daemons "" | while read -r pid program; do
        [ "$pid" = "$ours" ] || printf 'a daemon that runs: %s, process %s\n' "$program" "$pid"
    done
    installations "" | sed 's/^/an installation: /'
    for directory in /etc/raind /var/log/raind; do
        if [ -n "$(ls -A "$directory" 2> /dev/null)" ] && [ ! -f "$mark" ]; then printf 'data: %s\n' "$directory"; fi
    done
}

# other_objects: the same of what the daemon, which runs, has in its state. The demonstration is the set and the service
# `shop` with its pods, and an image. Fails when the daemon does not say all of it: then nobody knows.
other_objects() {
    local pods path kind answer
    if [ -e /etc/raind/condenser.toml ]; then printf 'a configuration: /etc/raind/condenser.toml\n'; fi
    find /etc/raind/volumes -mindepth 2 -maxdepth 2 2> /dev/null | sed 's/^/a volume: /'
    pods=$(api GET /v1/pods) || return
    pods=$(jq -c '[.data[] | select(.namespace == "default" and (.name | test("^shop-[0-9a-z]{8}$"))) | .podId]' <<< "$pods") || return
    while IFS='|' read -r path kind; do
        answer=$(api GET "$path") || return
        jq -r --argjson pods "$pods" --arg image "library/$image" "$kind" <<< "$answer" || return
    done << 'END'
/v1/pods|.data[] | select(.podId | IN($pods[]) | not) | "a pod: \(.namespace)/\(.name)"
/v1/containers|.data[] | select((.podId // "") | IN($pods[]) | not) | "a container: \(.name)"
/v1/replicasets|.data[] | select("\(.namespace)/\(.name)" != "default/shop") | "a replica set: \(.namespace)/\(.name)"
/v1/services|.data[] | select("\(.namespace)/\(.name)" != "default/shop") | "a service: \(.namespace)/\(.name)"
/v1/bottle|.data.bottles[] | "a bottle: \(.bottleName)"
/v1/networks|.data[] | select(.Interface != "raind0") | "a network: \(.Interface)"
/v1/images|.data[] | "\(.repository):\(.reference)" | select(. != $image) | "an image: \(.)"
/v1/policies/RAIND-EW|.data.policies[] | "a policy: \(.id)"
/v1/policies/RAIND-NS-OBS|.data.policies[] | "a policy: \(.id)"
/v1/policies/RAIND-NS-ENF|.data.policies[] | "a policy: \(.id)"
END
}

refuse_if_any() {
    [ -z "$1" ] || die "this machine has things of Condenser that the quickstart did not make; nothing was $2:
    ${1//$'\n'/$'\n    '}
$3"
}

# What --clean is going to remove, for whoever reads it.
list() {
    local directory pid
    say "--clean removes:"
    pid=$(our_daemon || true)
    [ -z "$pid" ] || printf '    the daemon: process %s, %s\n' "$pid" "$(program_of "$pid")"
    if [ -n "$pid" ]; then
        api GET /v1/containers | jq -r '.data[] | "    a container: \(.name)"'
        api GET /v1/images | jq -r '.data[] | "    an image: \(.repository):\(.reference)"'
    fi
    printf '    %s rules and chains of the packet filter, all in or into chains RAIND-...\n' "$(rules)"
    links | sed 's/^/    an interface: /'
    cgroups | sed 's/^/    a cgroup: /'
    for directory in /etc/raind /var/log/raind /run/raind; do
        [ ! -d "$directory" ] || printf '    a directory: %s, %s\n' "$directory" "$(du -sh "$directory" 2> /dev/null | cut -f 1)"
    done
}

clean() {
    local directory answer found pid
    if [ -z "$(ls -A /etc/raind 2> /dev/null)" ] && [ -z "$(our_daemon)" ]; then
        refuse_if_any "$(daemons "" | sed 's/^/a daemon that runs: process /')" removed ''
        say "there is nothing of a quickstart here"
        return
    fi
    refuse_if_any "$(others)" removed 'A daemon ends with kill PID, and its containers go on running. An installation is removed by scripts/install.sh --uninstall.'
    if [ -z "$(our_daemon)" ]; then
        if [ -n "$dry_run" ]; then
            list
            say "the daemon does not run: --clean starts it once more, to see whether anybody else has anything in it"
            return
        fi
        # Only the daemon knows what there is, and takes it apart in order. It may not run any more: after a reboot.
        start_daemon
    fi
    found=$(other_objects) || die "the daemon does not tell what it has, so nothing was removed; its log is $log"
    refuse_if_any "$found" removed 'Delete them first, if nobody needs them; see README.md.'
    list
    [ -z "$dry_run" ] || return 0
    if [ -z "$yes" ] && [ -t 0 ]; then
        read -rp "Remove all this? [y/N] " answer
        [[ $answer = [yY]* ]] || die "nothing was removed"
    fi
    say "removing the service, the pods and the image"
    api POST /v1/resource/delete "@$manifest" > /dev/null 2>&1 || true
    api DELETE /v1/images "{\"image\":\"$image\"}" > /dev/null 2>&1 || true
    say "stopping the daemon"
    pid=$(our_daemon || true)
    [ -z "$pid" ] || end "$pid"
    say "removing what it made: rules, interfaces, cgroups and directories"
    remove_kernel_objects /etc/raind "$(cat "$run/from")/droplet"
    restore_sysctls
    for directory in /etc/raind /var/log/raind /run/raind; do remove "$directory"; done
    say "done; the packages and target/ were left as they are"
}

# Switches off again what the daemon switched on, unless there is somebody else who may need it by now.
restore_sysctls() {
    local value file type
    [ -f "$run/sysctls" ] || return 0
    for type in bridge tun wireguard; do
        [ -z "$(ip -oneline link show type "$type")" ] || return 0
    done
    while read -r value file; do echo "$value" > "$file" || true; done < "$run/sysctls"
}

start_daemon() {
    local pid file
    [ -n "$from" ] || from=$(cat "$run/from" 2> /dev/null || echo target/try)
    from=$(realpath -m "$from")
    [ -x "$from/condenser" ] || die "$from/condenser is not there: run scripts/quickstart.sh once more first"
    pid=$(our_daemon || true)
    if [ -n "$pid" ] && [ "/proc/$pid/exe" -ef "$from/condenser" ]; then
        say "the daemon runs already"
        return
    fi
    if [ -n "$pid" ]; then
        say "the daemon was built anew: restarting it"
        end "$pid"
    fi
    install -d -m 700 /etc/raind "$run"
    mkdir -p /var/log/raind
    printf 'Made by %s: its --clean removes what is here.\n' "$PWD/scripts/quickstart.sh" > "$mark"
    # As it was before the first start since the machine was booted.
    if [ ! -f "$run/sysctls" ]; then
        for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables; do
            if [ -f "$file" ]; then echo "$(< "$file") $file"; fi
        done > "$run/sysctls"
    fi
    say "starting the daemon"
    printf '%s\n' "$from" > "$run/from"
    printf '%s\n' "$from/condenser" > "$run/program"
    setsid "$from/condenser" < /dev/null >> "$log" 2>&1 &
    echo $! > "$run/pid"
    wait_for "the daemon" api GET /v1/containers
}

need_root "$@"
while [ $# -gt 0 ]; do
    case $1 in
        --from)
            from=${2-}
            [ -x "$from/condenser" ] || die "--from needs a directory with the programs"
            shift
            ;;
        --clean) action=clean ;;
        --dry-run) dry_run=1 ;;
        --yes) yes=1 ;;
        *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 2 ;;
    esac
    shift
done
if [ "$action" = clean ]; then
    clean
    exit 0
fi
trap 'printf "\nerror: line %s failed; scripts/quickstart.sh --clean removes what is there\n" "$LINENO" >&2' ERR

for_machines_without='The quickstart is for machines without Condenser. With an installation, begin at "A first container by hand" in README.md.'

# What would make it fail later, first.
refuse_if_any "$(others)" started "$for_machines_without"
if [ -z "$from" ]; then
    need_cargo build
    need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq cc=build-essential busybox=busybox-static \
        update-ca-certificates=ca-certificates
    build try
else
    need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq busybox=busybox-static
fi
# A build is long enough for somebody to install it.
refuse_if_any "$(others)" started "$for_machines_without"
start_daemon

say "POST /v1/images/build: building $image from assets/demo/Dripfile"
tar -cf "$run/context.tar" -C "$PWD/assets/demo" Dripfile index.html -C "$(dirname "$(command -v busybox)")" busybox
api POST "/v1/images/build?tag=$image" "@$run/context.tar"

say "POST /v1/resource/apply: applying $manifest"
api POST /v1/resource/apply "@$manifest"
wait_for "the two pods" ready 2

say "GET /v1/pods"
api GET /v1/pods | jq -r '.data[] | [.name, .state, "\(.runningContainers)/\(.desiredContainers)"] | @tsv'

say "GET $service/, six times"
wait_for "the service" curl --silent --fail --max-time 5 "$service/pod.txt"
call

say "POST /v1/replicasets/shop/actions/scale: four pods"
api POST /v1/replicasets/shop/actions/scale '{"replicas":4}'
wait_for "four pods" ready 4
call

victim=$(api GET /v1/containers | jq '[.data[] | select(.state == "running" and (.name | startswith("web-")))][0]')
pod=$(api GET "/v1/pods/$(jq -r .podId <<< "$victim")" | jq -r .data.name)
say "killing the web server of the pod $pod, which is the container $(jq -r .name <<< "$victim")"
kill -9 "$(jq -r .pid <<< "$victim")"
# restarted ID: whether the container was started again.
restarted() {
    api GET "/v1/containers/$1" | jq -e '.data | .state == "running" and .restartCount > 0'
}
wait_for "the killed web server" restarted "$(jq -r .containerId <<< "$victim")"
wait_for "four pods" ready 4
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
