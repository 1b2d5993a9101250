# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# To be sourced by vm.sh; used on the host and, by way of in_machine, in the machine.

# check NAME EXPECTED SEEN: a row of the report. EXPECTED is a pattern as in `case`, extended ones included.
check() {
    local verdict=FAIL
    shopt -s extglob
    # shellcheck disable=SC2053 # a pattern
    if [[ $3 == $2 ]]; then verdict=ok; fi
    row "$verdict" "$1" "$2" "$3"
}

# note NAME SEEN: a row without a verdict.
note() { row - "$1" '' "$2"; }

# not_run NAME REASON
not_run() { row 'not run' "$1" '' "$2"; }

row() { printf 'CHECK\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\n\t' '; ' | cut -c1-500)"; }

# within SECONDS COMMAND...: until it succeeds.
within() {
    local until=$((SECONDS + $1))
    shift
    while ! "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.5
    done
}

# api PATH OPTION...: of curl.
api() {
    local path=$1
    shift
    curl -sS --max-time 300 --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
        --key /etc/raind/cert/raindClient.key "https://localhost:7755/v1$path" "$@"
}

# status PATH OPTION...: the code of the answer.
status() { api "$@" -o /dev/null -w '%{http_code}'; }

# create NAME JSON and start NAME print what went wrong, if anything did.
create() { api /containers -d "{\"name\":\"$1\",$2}" | jq -r 'select(.status != "success") | .message'; }
start() { api "/containers/$1/actions/start" -X POST | jq -r 'select(.status != "success") | .message'; }
container() { create "$@" && start "$1"; }

remove() {
    local name
    for name; do
        api "/containers/$name/actions/stop" -X POST > /dev/null
        api "/containers/$name/actions/delete" -X DELETE | jq -r 'select(.status != "success") | .message'
    done
}

# field NAME KEY: of the container's description. summary NAME FILTER: what jq makes of it.
field() { api "/containers/$1" | jq -r ".data.$2"; }
summary() { api "/containers/$1" | jq -r ".data | $2"; }

# group NAME: its cgroup.
group() { echo "/sys/fs/cgroup/raind/$(field "$1" containerId)"; }

# inside NAME COMMAND...: an exec that waits. Prints both streams; returns the exit code.
inside() {
    local name=$1 answer
    shift
    answer=$(api "/containers/$name/actions/exec" \
        -d "$(jq -nc '{command: $ARGS.positional, wait: true, timeout: 120}' --args -- "$@")")
    jq -r 'if .data then .data.stdout + .data.stderr | rtrimstr("\n") else .message end' <<< "$answer"
    return "$(jq -r '.data.exitCode // 255' <<< "$answer")"
}

states() { api /containers | jq -r '.data | sort_by(.name)[] | "\(.name)=\(.state)/\(.pid)"' | xargs; }
running() { api /containers | jq '[.data[] | select(.state == "running")] | length'; }
confinement() { cat "/proc/$(field "$1" pid)/attr/current"; }
main_pid() { systemctl show -P MainPID condenser; }
# Lines of the daemon's log that are no mere information, since a moment (of `now`).
complaints() { journalctl -u condenser -o cat --no-pager --since "@$1" _COMM=condenser | grep -E ' (WARN|ERROR) ' || true; }
now() { date +%s; }
served() { api /containers | jq -e '.status == "success"'; }
is_stopped() { [ "$(field "$1" state)" = stopped ]; }
restart_daemon() { systemctl restart condenser && within 120 served; }
log_has() { api "/containers/$1/log?all=1" | grep -q "$2"; }

# The containers that several phases expect; started again if they do not run.
stock() {
    keep_running plain '"image":"busybox:latest","command":["sleep","100000"]'
    keep_running limited '"image":"busybox:latest","command":["sleep","100000"],"memory":67108864,"cpus":0.5,"pidsLimit":20'
    keep_running debian '"image":"debian:latest","command":["sleep","100000"],"restartPolicy":{"name":"always"}'
}

keep_running() {
    case $(field "$1" state) in
        running) ;;
        null) container "$@" ;;
        *) start "$1" ;;
    esac
}
