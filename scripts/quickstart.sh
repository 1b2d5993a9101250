#!/usr/bin/env bash
# From a clone to a container that answers:
#
#   scripts/quickstart.sh           builds Condenser, starts it, makes a small image offline, pulls it from a registry
#                                   on this machine, runs it as a web server with a published port and calls that
#   scripts/quickstart.sh --clean   takes all of it away again
#
# It may be run again at any time. It writes to Condenser's own places (/etc/raind, /var/log/raind, /run/raind) and to
# this clone, and installs the Debian packages that are missing. QUICKSTART_PORT is the published port, 8080 by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

port=${QUICKSTART_PORT:-8080}
registry=127.0.0.1:5055
image=$registry/quickstart/web:1
name=quickstart
run=/run/raind/quickstart
pidfile=/run/raind/condenser.pid
log=/var/log/raind/condenser.log
# Says that this script made /etc/raind, so that --clean may remove it.
mark=/etc/raind/.quickstart

# Calls the API: api METHOD PATH [JSON]. Prints the answer; fails with the daemon's message.
api() {
    local answer
    answer=$(curl --silent --show-error --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
        --key /etc/raind/cert/raindClient.key -X "$1" ${3:+--data "$3"} "https://localhost:7755$2") || return
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

remove_container() {
    api GET "/v1/containers/$name" > /dev/null 2>&1 || return 0
    api POST "/v1/containers/$name/actions/stop" > /dev/null 2>&1 || true
    api DELETE "/v1/containers/$name/actions/delete" > /dev/null
}

clean() {
    local link
    if alive "$pidfile" "$PWD/target/release/condenser"; then
        say "removing the container and the image"
        remove_container
        api DELETE /v1/images "{\"image\":\"$image\"}" > /dev/null 2>&1 || true
        say "stopping the daemon"
        end "$pidfile"
    fi
    if alive "$run/registry.pid" "$(command -v docker-registry)"; then
        say "stopping the registry"
        end "$run/registry.pid"
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
        mkdir -p /etc/raind "$run"
        touch "$mark"
        for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables; do
            if [ -f "$file" ]; then echo "$(< "$file") $file"; fi
        done > "$run/sysctls"
    fi
    say "starting the daemon"
    mkdir -p /var/log/raind
    setsid target/release/condenser --insecure-registries "$registry" < /dev/null >> "$log" 2>&1 &
    echo $! > "$pidfile"
    wait_for "the daemon" "$log" api GET /v1/containers
}

start_registry() {
    if alive "$run/registry.pid" "$(command -v docker-registry)"; then return; fi
    cat > "$run/registry.yml" << END
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $run/registry } }
http: { addr: "$registry" }
END
    setsid docker-registry serve "$run/registry.yml" < /dev/null > "$run/registry.log" 2>&1 &
    echo $! > "$run/registry.pid"
    wait_for "the registry" "$run/registry.log" curl --silent --fail "http://$registry/v2/"
}

make_image() {
    local layout=$run/image bundle=$run/bundle root=$run/bundle/rootfs
    rm -rf "$layout" "$bundle"
    umoci init --layout "$layout"
    umoci new --image "$layout:web"
    umoci unpack --image "$layout:web" "$bundle" > /dev/null
    mkdir -p "$root/bin" "$root/www" "$root/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for command in sh ls cat ps id ip hostname wget httpd sleep; do ln -s busybox "$root/bin/$command"; done
    echo 'Hello from a container.' > "$root/www/index.html"
    umoci repack --image "$layout:web" "$bundle" > /dev/null
    umoci config --image "$layout:web" --config.cmd=/bin/httpd --config.cmd=-f --config.cmd=-v \
        --config.cmd=-h --config.cmd=/www --config.env PATH=/bin
    skopeo copy --quiet --dest-tls-verify=false "oci:$layout:web" "docker://$image"
    rm -rf "$layout" "$bundle"
}

need_root "$@"
case ${1-} in
    '') ;;
    --clean) clean && exit 0 ;;
    *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
trap 'printf "\nerror: line %s failed; scripts/quickstart.sh --clean removes what is there\n" "$LINENO" >&2' ERR

need iptables=iptables ip=iproute2 modprobe=kmod curl=curl jq=jq cc=build-essential busybox=busybox-static \
    umoci=umoci skopeo=skopeo docker-registry=docker-registry
need_cargo

say "building (the first time takes some minutes)"
cargo build --release --locked --bins
start_daemon
mkdir -p "$run"

say "making an image and pushing it to a registry on this machine"
start_registry
make_image

say "POST /v1/images: pulling $image"
api POST /v1/images "{\"image\":\"$image\"}"

say "POST /v1/containers: creating the container '$name', port $port"
remove_container
id=$(api POST /v1/containers "{\"image\":\"$image\",\"name\":\"$name\",\"port\":[\"$port:80\"]}" | jq -r .data.id)
echo "$id"

say "POST /v1/containers/$name/actions/start"
api POST "/v1/containers/$name/actions/start"

say "GET http://127.0.0.1:$port/"
wait_for "the web server" "/etc/raind/container/$id/logs/init.log" curl --silent --fail "http://127.0.0.1:$port/"
curl --silent --fail "http://127.0.0.1:$port/"

say "GET /v1/containers"
api GET /v1/containers | jq -r '.data[] | [.containerId, .name, .state, .address, .imageRepository, .imageReference] | @tsv'

say "GET /v1/containers/$name/log"
curl --silent --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
    --key /etc/raind/cert/raindClient.key "https://localhost:7755/v1/containers/$name/log"

cat << END

It runs. How to go on:

  alias raind-curl='curl --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt --key /etc/raind/cert/raindClient.key'
  raind-curl https://localhost:7755/v1/containers/$name
  raind-curl -X POST https://localhost:7755/v1/containers/$name/actions/stop
  raind-curl -X DELETE https://localhost:7755/v1/containers/$name/actions/delete

The daemon's log is $log. To remove everything again: scripts/quickstart.sh --clean
END
