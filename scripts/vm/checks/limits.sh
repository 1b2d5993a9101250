# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# Limits on cgroup version 2: memory, swap, processor, processes; what a container sees of them; statistics.

guest_limits() {
    local limited plain
    stock
    limited=$(group limited) plain=$(group plain)
    check "limits that were asked for" "67108864 50000 100000 20" "$(cat "$limited"/{memory.max,cpu.max,pids.max} | xargs)"
    check "default limits" "1073741824 80000 100000 512" "$(cat "$plain"/{memory.max,cpu.max,pids.max} | xargs)"
    check "no swap beside 64 MiB of memory" 0 "$(cat "$limited/memory.swap.max")"
    check "the container is in its group" "0::/raind/${limited##*/}" "$(cat "/proc/$(field limited pid)/cgroup")"
    check "its monitor is not in the unit" "0::/raind/_monitors" "$(cat "/proc/$(ps -o ppid= "$(field limited pid)" | xargs)/cgroup")"
    check "the unit has the daemon only" "$(main_pid)" "$(cat /sys/fs/cgroup/system.slice/condenser.service/cgroup.procs)"
    guest_limits_processes
    guest_limits_memory
    guest_limits_swap
    guest_limits_processor
    guest_limits_view
}

# In a container of its own: what it leaves are zombies, which count.
guest_limits_processes() {
    container forks '"image":"busybox:latest","command":["sleep","1000"],"pidsLimit":20'
    check "process limit" "*Resource temporarily unavailable*" \
        "$(inside forks sh -c 'i=0; while [ $i -lt 40 ]; do sleep 15 & i=$((i+1)); done; wait' 2>&1)"
    check "process limit: the kernel counted it" "max [1-9]*" "$(cat "$(group forks)/pids.events")"
    remove forks
}

guest_limits_memory() {
    container hog '"image":"busybox:latest","command":["sh","-c","sleep 1; tail /dev/zero"],"memory":33554432'
    within 120 is_stopped hog
    check "memory hog" "137 OOMKilled" "$(summary hog '"\(.exitCode) \(.reason)"')"
    check "memory hog: memory_oom_kill after the end" "[1-9]*" "$(api /containers/hog/stats | jq .data.memory_oom_kill)"
    container child '"image":"busybox:latest","command":["sh","-c","tail /dev/zero; echo ended $?; sleep 1000"],"memory":33554432'
    within 120 log_has child ended
    check "hog as a child: only the child is killed, the container goes on" "ended 137 running" "$(api /containers/child/log | tail -1) $(field child state)"
    remove hog child
    container mem '"image":"busybox:latest","command":["sh","-c","dd if=/dev/zero of=/dev/shm/x bs=1M count=40; sleep 1000"],"memory":134217728'
    within 60 log_has mem copied
    check "statistics of 40 MiB in use" "4[0-9]" "$(($(api /containers/mem/stats | jq .data.memory_current_bytes) / 1048576))"
    remove mem
}

guest_limits_swap() {
    local file=/swapfile
    fallocate -l 256M $file && chmod 600 $file && mkswap -q $file && swapon $file
    container swap '"image":"busybox:latest","command":["sh","-c","sleep 1; dd if=/dev/zero of=/dev/null bs=100M count=1; echo dd $?; sleep 1000"],"memory":33554432'
    within 120 log_has swap 'dd '
    check "32 MiB of memory, 100 MiB used, the host has swap" "dd 137" "$(api /containers/swap/log | tail -1)"
    check "the same: peak of swap" 0 "$(cat "$(group swap)/memory.swap.peak")"
    container more '"image":"busybox:latest","command":["sleep","1000"],"memory":33554432,"memorySwap":100663296'
    check "memorySwap of 96 MiB beside 32 MiB of memory" 67108864 "$(cat "$(group more)/memory.swap.max")"
    remove swap more
    swapoff $file && rm $file
}

guest_limits_processor() {
    local busy used start
    container busy '"image":"busybox:latest","command":["sh","-c","while :; do :; done"],"cpus":0.2'
    api /containers/busy/stats > /dev/null
    busy=$(group busy)
    sleep 2
    start=$(date +%s%N) used=$(awk '$1 == "usage_usec" { print $2 }' "$busy/cpu.stat")
    sleep 10
    used=$(($(awk '$1 == "usage_usec" { print $2 }' "$busy/cpu.stat") - used))
    check "a fifth of a processor, busy: percent of a processor" "@(1[0-9]|2[0-5])" "$((used * 100000 / ($(date +%s%N) - start)))"
    check "the same: cpu_percent of its quota" "@([5-9][0-9]|1[01][0-9])" "$(api /containers/busy/stats | jq -r '.data.cpu_percent | round')"
    remove busy
}

# What JVM and Node size themselves by.
guest_limits_view() {
    check "inside: cgroup namespace" "0::/" "$(inside limited cat /proc/self/cgroup)"
    check "inside: one cgroup mount, read-only, of version 2, its own root" "1 / ro,*cgroup2" \
        "$(inside limited awk '$5 ~ /cgroup/ { n++; r = $4; o = $6; for (i = 7; $i != "-"; i++); t = $(i+1) } END { print n, r, o, t }' /proc/self/mountinfo)"
    check "inside: its own limits are visible" "67108864 50000 100000 20" "$(inside limited cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max 2>&1 | xargs)"
    check "inside: a limit cannot be changed" "*Read-only file system*" "$(inside limited sh -c 'echo max > /sys/fs/cgroup/memory.max' 2>&1)"
    check "inside: no group can be made" "*Read-only file system*" "$(inside limited mkdir /sys/fs/cgroup/x 2>&1)"
}
