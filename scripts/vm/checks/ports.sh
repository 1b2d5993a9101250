# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Published ports: never what others have, and nothing is open from outside that was not asked for.

host_ports() {
    in_machine guest_ports_taken
    in_net python3 "$here/scan.py" > "$state/scan.before"
    check "scan: what is open from outside since the installation, nothing being published" "" "$(difference "$state/scan.bare" "$state/scan.before")"
    in_machine guest_ports_publish
    in_net python3 "$here/scan.py" > "$state/scan.published"
    check "scan: what is open since 9080/tcp and 9053/udp are published" "+9053/udp +9080/tcp" "$(difference "$state/scan.before" "$state/scan.published")"
    check "9080/tcp answers outside" page "$(in_net curl -s -m 30 http://192.0.2.2:9080/)"
    in_machine remove pub udp
    in_net python3 "$here/scan.py" > "$state/scan.after"
    check "scan: what is open after their removal" "" "$(difference "$state/scan.before" "$state/scan.after")"
}

# difference BEFORE AFTER
difference() { diff <(sort "$1") <(sort "$2") | sed -n 's/^< /-/p; s/^> /+/p' | sort | xargs; }

# Processes of the host listen there.
guest_ports_taken() {
    local listener=/run/listener.py pid port
    cat > $listener << 'PYTHON'
import socket, time
kept = []
for kind, address in ((socket.SOCK_STREAM, ("0.0.0.0", 8090)), (socket.SOCK_STREAM, ("127.0.0.1", 8091)), (socket.SOCK_DGRAM, ("0.0.0.0", 8092))):
    s = socket.socket(socket.AF_INET, kind)
    s.bind(address)
    if kind == socket.SOCK_STREAM: s.listen()
    kept.append(s)
six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM); six.bind(("::", 8093)); six.listen()
print("ready", flush=True); time.sleep(1000)
PYTHON
    create early '"image":"busybox:latest","command":["sleep","1000"],"port":["8090:80"]'
    python3 $listener > /run/listener.out &
    pid=$!
    within 30 grep -q ready /run/listener.out
    for port in 22:22 8090:80 8091:80 8092:80/udp 8093:80; do
        check "a process of the host listens on ${port%%:*}: create" 409 "$(status /containers -d "{\"name\":\"taken\",\"image\":\"busybox:latest\",\"command\":[\"sleep\",\"1000\"],\"port\":[\"$port\"]}")"
        remove taken > /dev/null
    done
    check "it began to listen after the create: start" 409 "$(status /containers/early/actions/start -X POST)"
    kill $pid
    wait $pid 2> /dev/null
    check "it has ended: start" 200 "$(status /containers/early/actions/start -X POST)"
    remove early
}

guest_ports_publish() {
    container pub '"image":"busybox:latest","command":["sh","-c","echo page > /www/index.html; exec httpd -f -p 80 -h /www"],"port":["9080:80"]'
    container udp '"image":"debian:latest","command":["python3","-c","import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"0.0.0.0\", 53)); print(\"ready\", flush=True)\nwhile True: s.sendto(*s.recvfrom(2048))"],"port":["9053:53/udp"]'
    within 60 log_has udp ready
    check "two containers with published ports run" "running running" "$(field pub state) $(field udp state)"
}
