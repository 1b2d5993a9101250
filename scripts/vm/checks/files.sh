# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# What a local user without any right can see of the files.

guest_files() {
    local id root=/etc/raind
    stock
    container secret '"image":"busybox:latest","command":["sleep","100000"],"env":["DB_PASSWORD=swordfish"]'
    inside secret sh -c 'cp /bin/busybox /root/shell; chmod 4755 /root /root/shell'
    id=$(field secret containerId)
    cat > /run/walk.py << 'PYTHON'
# As nobody: which of the paths on standard input can be read, listed or connected to.
import os, socket, stat, sys
for path in sys.stdin.read().split("\0"):
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode): continue
        if stat.S_ISDIR(mode): os.listdir(path)
        elif stat.S_ISREG(mode): open(path, "rb").close()
        elif stat.S_ISSOCK(mode): socket.socket(socket.AF_UNIX).connect(path)
        else: continue
        print(path)
    except OSError: pass
PYTHON
    check "nobody reads nothing below $root, /run/raind, /var/log/raind" "" \
        "$(for directory in $root /run/raind /var/log/raind; do find "$directory" -xdev -mindepth 1 -print0; done | as_nobody python3 /run/walk.py)"
    check "the walk had something to look at" "[1-9][0-9]*" "$(find $root /run/raind /var/log/raind -type f | wc -l)"
    check "nobody, by its path: the environment of a container" "*Permission denied*" "$(as_nobody cat "$root/container/$id/config.json" 2>&1)"
    check "nobody, by its path: a setuid program of a container" "*Permission denied*" "$(as_nobody "$(find $root/container/"$id" -path '*/root/shell' | head -1)" id 2>&1)"
    check "nobody, the same through /proc of the container" "*Permission denied*" "$(as_nobody "/proc/$(field secret pid)/root/root/shell" id 2>&1)"
    check "nobody: the API without a certificate" "@(000|40[13])*" "$(as_nobody curl -sk -o /dev/null -w '%{http_code}' https://localhost:7755/v1/containers)"
    remove secret
}

# setpriv itself still has root's way through directories when it executes a program; a shell of nobody's has not.
as_nobody() { setpriv --reuid nobody --regid nogroup --clear-groups -- sh -c '"$@"' sh "$@"; }
