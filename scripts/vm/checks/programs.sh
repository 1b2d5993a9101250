# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# What programs in a confined container can do: be traced, ping, listen on port 80, and the rest of daily life.

guest_programs() {
    local since
    stock
    since=$(now)
    guest_programs_traced
    guest_programs_user
    check "ps" "*sleep 100000*" "$(inside debian ps ax)"
    check "apt, dpkg" "apt *" "$(inside debian apt-get --version | head -1)"
    check "useradd, su" "uid=*(u1)*" "$(inside debian bash -c 'id u1 > /dev/null 2>&1 || useradd u1; su u1 -c id')"
    check "chown, mode, fifo, links" "4755 u1 fifo" "$(inside debian bash -c 'cd /tmp; rm -f f g h; cp /bin/true f; chown u1 f; chmod 4755 f; mkfifo g; ln -s f h; stat -c "%a %U" f | xargs echo -n; stat -c " %F" g')"
    check "nginx" "*Welcome to nginx*" "$(inside debian bash -c 'nginx; for i in $(seq 40); do exec 3<>/dev/tcp/127.0.0.1/80 && break; sleep .5; done 2>/dev/null; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3; nginx -s stop')"
    check "Python: sockets of all kinds, shared memory, queues, threads" "*all of it*" "$(inside debian python3 -c 'import socket, os, tempfile, mmap, multiprocessing, threading, subprocess
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
p = tempfile.mktemp(); s = socket.socket(socket.AF_UNIX); s.bind(p); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect(p)
s = socket.socket(socket.AF_UNIX); s.bind("\0abstract"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect("\0abstract")
s = socket.socket(); s.bind(("127.0.0.1", 8000)); s.listen(); c = socket.socket(); c.connect(("127.0.0.1", 8000))
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
m = mmap.mmap(-1, 4096, prot=7)
q = multiprocessing.Queue(); t = multiprocessing.Process(target=q.put, args=(1,)); t.start(); assert q.get() == 1; t.join()
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
assert subprocess.check_output(["true"]) == b""
print("all of it")' 2>&1)"
    check "what AppArmor denied to all of these" "" "$(journalctl -k --no-pager -o cat --since "@$since" | grep 'apparmor="DENIED"' | grep raind-default | head -3)"
}

guest_programs_traced() {
    check "strace of one's own child" "0*execve*" "$(inside debian bash -c 'strace -f -o /tmp/trace sh -c "true; true"; echo $? "$(head -1 /tmp/trace | cut -d" " -f2-)"' 2>&1)"
    check "gdb of one's own child" "*exited normally*" "$(inside debian gdb -nx -batch -ex run /bin/true 2>&1 | tail -1)"
    container tracer '"image":"debian:latest","command":["sleep","100000"],"user":"1000","capAdd":["SYS_PTRACE"]'
    check "strace with SYS_PTRACE, as uid 1000" 0 "$(inside tracer bash -c 'strace -o /tmp/trace true; echo $?' 2>&1)"
    remove tracer
    check "a process of the host is not in sight" "*No such process*" "$(inside debian strace -p "$(main_pid)" 2>&1)"
}

guest_programs_user() {
    container user '"image":"debian:latest","command":["sleep","100000"],"user":"1000"'
    check "ping as uid 1000" "*1 received*" "$(inside user ping -c1 -W5 127.0.0.1 2>&1)"
    check "ping of the world outside as uid 1000" "*1 received*" "$(inside user ping -c1 -W5 192.0.2.1 2>&1)"
    check "port 80 as uid 1000" "listens as 1000" "$(inside user python3 -c 'import os, socket
s = socket.socket(); s.bind(("0.0.0.0", 80)); s.listen(); print("listens as", os.getuid())' 2>&1 | tail -1)"
    remove user
}
