# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Builds, pods, a service, published ports, policies; later phases look at what they do under firewalls and restarts.

set_has() { api /replicasets/shop | jq -e ".data | .current == $1 and .ready == $1"; }
calls() { for _ in $(seq "$1"); do curl -s -m 20 http://127.0.0.1:11240/pod.txt; done | sort | uniq -c | wc -l; }
restarted() { api "/containers/$1" | jq -e '.data | .state == "running" and .restartCount > 0'; }

guest_workloads() {
    local victim
    check "build of assets/demo" "build completed" "$(tar -cf - -C /payload/src/assets/demo Dripfile index.html -C /bin busybox |
        api "/images/build?tag=demo:1" --data-binary @- | jq -r .message)"
    guest_workloads_long_build
    check "apply of shop.yaml" "resources applied" "$(api /resource/apply --data-binary @/payload/src/assets/demo/shop.yaml | jq -r .message)"
    within 240 set_has 2
    check "two pods are ready" "2 2" "$(api /replicasets/shop | jq -r '.data | "\(.current) \(.ready)"')"
    check "the service is spread over both" 2 "$(calls 20)"
    api /replicasets/shop/actions/scale -X POST -d '{"replicas":4}' > /dev/null
    within 240 set_has 4
    check "scaled to four" "4 4" "$(api /replicasets/shop | jq -r '.data | "\(.current) \(.ready)"')"
    victim=$(api /containers | jq '[.data[] | select(.state == "running" and (.name | startswith("web-")))][0]')
    kill -KILL "$(jq .pid <<< "$victim")"
    within 120 restarted "$(jq -r .containerId <<< "$victim")"
    check "a killed web server comes back" 0 $?
    within 120 set_has 4
    guest_workloads_network
}

# Its command takes longer than the daemon's sweep for leftovers waits.
guest_workloads_long_build() {
    local directory=/run/build
    mkdir -p $directory
    cp /bin/busybox $directory/
    cat > $directory/Dripfile << 'DRIP'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do /bin/busybox ip -o -4 addr show dev eth0 || exit 9; /bin/busybox sleep 2; done"]
DRIP
    check "a build step of 16 seconds keeps its network" "build completed" \
        "$(tar -cf - -C $directory . | api "/images/build?tag=long:1" --data-binary @- | jq -r .message)"
    rm -r $directory
}

guest_workloads_network() {
    container web '"image":"busybox:latest","command":["sh","-c","echo page > /www/index.html; exec httpd -f -p 80 -h /www"],"port":["8080:80"],"restartPolicy":{"name":"always"}'
    container cli '"image":"debian:latest","command":["sleep","100000"],"restartPolicy":{"name":"always"}'
    container ok '"image":"debian:latest","command":["sleep","100000"],"restartPolicy":{"name":"always"}'
    api /policies -d '{"chain":"RAIND-EW","source":"ok","dest":"web","protocol":"tcp","dport":80}' > /dev/null
    check "policy commit" "policy committed" "$(api /policies/commit -X POST | jq -r .message)"
    check "explain: without a policy" deny "$(api "/policies/explain?source=cli&destination=web&protocol=tcp&port=80" | jq -r .data.decision)"
    check "explain: with a policy" allow "$(api "/policies/explain?source=ok&destination=web&protocol=tcp&port=80" | jq -r .data.decision)"
    for program in httpd /pause; do
        check "every $program is confined" "raind-default (enforce)" "$(for p in $(pgrep -f "^[^ ]*$program"); do cat "/proc/$p/attr/current"; done | sort -u)"
    done
}

# fetch NAME ADDRESS PATH: from within a container.
fetch() {
    inside "$1" timeout 8 bash -c "exec 3<>/dev/tcp/$2/80 && printf 'GET $3 HTTP/1.0\r\n\r\n' >&3 && sed '1,/^\r*\$/d' <&3 || echo no answer" 2>&1
}

# guest_flows WHEN: what each flow does.
guest_flows() {
    local web
    web=$(field web address)
    check "$1: host to published port" page "$(curl -s -m 20 http://192.0.2.2:8080/)"
    check "$1: host to published port, loopback" page "$(curl -s -m 20 http://127.0.0.1:8080/)"
    check "$1: host to service" "[0-9a-z]*" "$(curl -s -m 20 http://127.0.0.1:11240/pod.txt)"
    check "$1: container to container, denied" "!(*page*)" "$(fetch cli "$web" /)"
    check "$1: container to container, by policy" page "$(fetch ok "$web" /)"
    check "$1: container to outside" "outside sees 192.0.2.2" "$(fetch cli 192.0.2.1 /)"
    check "$1: container looks up a name" "*192.0.2.1*" "$(inside cli getent ahostsv4 name.example 2>&1 | head -1)"
    check "$1: container to the API" denied "$(inside cli timeout 5 bash -c ': < /dev/tcp/10.166.0.254/7755' > /dev/null 2>&1 && echo open || echo denied)"
}

# flows WHEN: from within and from outside.
flows() {
    in_machine guest_flows "$1"
    check "$1: outside to published port" page "$(in_net curl -s -m 30 http://192.0.2.2:8080/)"
    check "$1: outside to service" "[0-9a-z]*" "$(in_net curl -s -m 30 http://192.0.2.2:11240/pod.txt)"
    check "$1: outside to the API" "" "$(in_net curl -sk -m 10 https://192.0.2.2:7755/v1/containers)"
}
