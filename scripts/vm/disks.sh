# shellcheck shell=bash disable=SC2016,SC2154 # expanded in a container; variables of vm.sh
# To be sourced by vm.sh: makes the disks of the machine. Nothing is mounted on the host: packages are configured in a
# mount namespace, file systems are made with mkfs.ext4 -d. The results are in $disks:
#   debian.img             root disk: systemd, cgroup version 2, AppArmor, a registry with two images; firewalls disabled
#   vmlinuz, initrd.img    its kernel
#   key                    for ssh as root
#   payload.img            second disk, read-only at /payload: programs, scripts and assets under test

# Packages of the machine.
machine_packages=(
    systemd systemd-sysv systemd-resolved udev dbus linux-image-amd64 initramfs-tools zstd
    iproute2 iptables nftables ufw firewalld conntrack apparmor apparmor-utils
    kmod procps psmisc busybox-static curl jq ca-certificates openssh-server python3 sqlite3 docker-registry util-linux
)
# Packages of the image `debian`, from which containers are started.
image_packages=(python3 iputils-ping procps iproute2 strace gdb-minimal nginx-light)

# in_root ROOT COMMAND...: runs it there, in a mount namespace with /proc, /sys and /dev.
in_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # expanded inside
    unshare --mount --propagation private bash -c '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t sysfs -o ro sysfs "$root/sys"
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
    ' _ "$root" "$@"
}

# logged NAME COMMAND...: with its output in a file, which is named if the command fails.
logged() {
    local log=$disks/$1.log
    shift
    "$@" > "$log" 2>&1 || { tail -n 5 "$log" >&2; die "$1 failed; see $log"; }
}

install_into() {
    local root=$1
    shift
    in_root "$root" apt-get -qq install -y --no-install-recommends "$@"
}

# The release of Debian that both the machine and the image `debian` begin with.
make_base() {
    say "debootstrap $suite"
    rm -rf "$disks/base" "$disks/root"
    # It leaves /proc mounted, so it gets a mount namespace of its own.
    logged debootstrap unshare --mount --propagation private \
        debootstrap --variant=minbase "$suite" "$disks/base" "$mirror"
    rm -f "$disks/base/etc/resolv.conf"
    cp -L /etc/resolv.conf "$disks/base/etc/resolv.conf"
    printf '%s\n' force-unsafe-io path-exclude=/usr/share/{doc,man,locale}/\* > "$disks/base/etc/dpkg/dpkg.cfg.d/small"
    # No service is started while packages are set up.
    printf '#!/bin/sh\nexit 101\n' > "$disks/base/usr/sbin/policy-rc.d"
    chmod 755 "$disks/base/usr/sbin/policy-rc.d"
    cp -a --one-file-system "$disks/base" "$disks/root"
}

# make_image NAME ROOT OPTION...: an image of one layer; the options are those of umoci config.
make_image() {
    local name=$1 root=$2
    shift 2
    umoci new --image "$disks/oci:$name"
    umoci insert --image "$disks/oci:$name" "$root" /
    umoci config --image "$disks/oci:$name" --architecture amd64 --os linux "$@"
}

make_images() {
    local path base=$disks/base busybox=$disks/busybox
    say "the container images"
    logged image-packages install_into "$base" "${image_packages[@]}"
    in_root "$base" apt-get clean
    for path in usr/share/doc usr/share/man usr/share/locale usr/share/zoneinfo var/lib/apt/lists var/cache; do
        find "${base:?}/$path" -mindepth 1 -delete
    done
    find "$base/var/log" -type f -delete
    rm -f "$base/usr/sbin/policy-rc.d" "$base/etc/resolv.conf"
    mkdir -p "$busybox"/{bin,etc,tmp,root,proc,sys,dev,run,www}
    cp "$disks/root/bin/busybox" "$busybox/bin/busybox"
    "$busybox/bin/busybox" --install -s "$busybox/bin"
    for path in "$busybox"/bin/*; do [ ! -L "$path" ] || ln -sf busybox "$path"; done
    chmod 1777 "$busybox/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n' > "$busybox/etc/passwd"
    printf 'root:x:0:\nweb:x:1000:\n' > "$busybox/etc/group"
    rm -rf "$disks/oci"
    umoci init --layout "$disks/oci"
    make_image debian "$base" --config.cmd /bin/bash \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    make_image busybox "$busybox" --config.cmd /bin/sh --config.env PATH=/bin
    rm -rf "$busybox" "$base"
}

# The machine's registry poses as the public one; the machine trusts this authority.
make_certificates() {
    local pki=$disks/root/etc/registry
    mkdir -p "$pki"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=test authority" \
        -keyout "$disks/ca.key" -out "$pki/ca.crt" 2> /dev/null
    openssl req -newkey rsa:2048 -nodes -subj "/CN=registry-1.docker.io" \
        -keyout "$pki/registry.key" -out "$disks/registry.csr" 2> /dev/null
    openssl x509 -req -in "$disks/registry.csr" -CA "$pki/ca.crt" -CAkey "$disks/ca.key" -CAcreateserial -days 3650 \
        -extfile <(printf 'subjectAltName=DNS:registry-1.docker.io,IP:127.0.0.1\n') -out "$pki/registry.crt" 2> /dev/null
    rm -f "$disks"/{ca.key,registry.csr} "$pki/ca.srl"
    mkdir -p "$disks/root/usr/local/share/ca-certificates"
    cp "$pki/ca.crt" "$disks/root/usr/local/share/ca-certificates/test.crt"
    in_root "$disks/root" update-ca-certificates > /dev/null 2>&1
}

# The registry, filled here: in an emulated machine it would take minutes.
make_registry() {
    local root=$disks/root
    cat > "$root/etc/registry/config.yml" << 'CONFIG'
version: 0.1
storage: { filesystem: { rootdirectory: /var/lib/registry } }
http:
  addr: 127.0.0.1:443
  tls: { certificate: /etc/registry/registry.crt, key: /etc/registry/registry.key }
CONFIG
    cat > "$root/etc/systemd/system/registry.service" << 'UNIT'
[Unit]
Description=Registry for the checks
[Service]
ExecStart=/usr/bin/docker-registry serve /etc/registry/config.yml
[Install]
WantedBy=multi-user.target
UNIT
    # shellcheck disable=SC2016 # expanded inside
    logged registry unshare --net --pid --fork --kill-child bash -ec '
        ip link set lo up
        chroot "$1/root" docker-registry serve /etc/registry/config.yml &
        for try in $(seq 100); do (: < /dev/tcp/127.0.0.1/443) 2> /dev/null && break; sleep 0.2; done
        for image in busybox debian; do
            skopeo copy --dest-tls-verify=false "oci:$1/oci:$image" "docker://127.0.0.1/library/$image:latest"
        done' _ "$disks"
    rm -rf "$disks/oci"
}

# Names, network, ssh, journal.
configure_machine() {
    local root=$disks/root
    rm -f "$disks/key" "$disks/key.pub"
    ssh-keygen -q -t ed25519 -N '' -f "$disks/key"
    mkdir -p "$root/root/.ssh" "$root/payload"
    chmod 700 "$root/root/.ssh"
    cp "$disks/key.pub" "$root/root/.ssh/authorized_keys"
    printf 'vm\n' > "$root/etc/hostname"
    printf '127.0.0.1 localhost vm registry-1.docker.io\n' > "$root/etc/hosts"
    printf 'LABEL=debian / ext4 defaults 0 1\nLABEL=payload /payload ext4 ro,nofail 0 0\n' > "$root/etc/fstab"
    printf '[Match]\nName=en* eth*\n[Network]\nAddress=192.0.2.2/24\nGateway=192.0.2.1\nDNS=8.8.8.8\n' \
        > "$root/etc/systemd/network/uplink.network"
    printf 'UseDNS no\nPermitRootLogin prohibit-password\nMaxSessions 100\n' > "$root/etc/ssh/sshd_config.d/test.conf"
    # So that a reset leaves a journal to read.
    mkdir -p "$root/var/log/journal" "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nSyncIntervalSec=1s\nRateLimitIntervalSec=0\n' \
        > "$root/etc/systemd/journald.conf.d/test.conf"
    in_root "$root" systemctl --quiet disable ufw.service firewalld.service nftables.service docker-registry.service || true
    in_root "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
    in_root "$root" systemctl --quiet enable systemd-networkd.service ssh.service registry.service
    # Compiling the hundred profiles of programs that are not there takes minutes where the processor is emulated.
    find "$root/etc/apparmor.d" -maxdepth 1 -type f ! -name lsb_release -delete
    rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/resolv.conf"
    ln -s /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    : > "$root/etc/machine-id"
}

make_machine() {
    local root=$disks/root size
    say "the packages of the machine"
    mkdir -p "$root/etc/initramfs-tools/conf.d"
    printf 'MODULES=list\nCOMPRESS=zstd\n' > "$root/etc/initramfs-tools/conf.d/small"
    printf '%s\n' virtio_pci virtio_blk ext4 > "$root/etc/initramfs-tools/modules"
    logged machine-packages install_into "$root" "${machine_packages[@]}"
    in_root "$root" apt-get clean
    find "$root/var/lib/apt/lists" -mindepth 1 -delete
    # conf.d is read before the packages' own file.
    sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
    printf '%s\n' virtio_pci virtio_blk ext4 > "$root/etc/initramfs-tools/modules"
    logged initramfs in_root "$root" update-initramfs -u -k all
    make_images
    make_certificates
    make_registry
    configure_machine
    cp "$root"/boot/vmlinuz-* "$disks/vmlinuz"
    cp "$root"/boot/initrd.img-* "$disks/initrd.img"
    say "the root disk"
    size=$(du -sm "$root" | cut -f1)
    rm -f "$disks/debian.img"
    truncate -s $((size + 6144))M "$disks/debian.img"
    mkfs.ext4 -q -F -L debian -d "$root" "$disks/debian.img"
    rm -rf "$root"
}

make_payload() {
    local stage=$disks/stage size
    say "the programs and scripts under test"
    rm -rf "$stage"
    mkdir -p "$stage"/{bin,src}
    cp "${bin:-target/release}"/{condenser,droplet,condenser-hook-agent} "$stage/bin/"
    # Symbols for a debugger are of no use there, and read slowly.
    strip --strip-debug "$stage/bin"/*
    cp -a scripts assets docs "$stage/src/"
    [ -z "$peer" ] || cp -a "$peer" "$stage/peer"
    size=$(du -sm "$stage" | cut -f1)
    rm -f "$disks/payload.img"
    truncate -s $((size + size / 4 + 64))M "$disks/payload.img"
    mkfs.ext4 -q -F -L payload -d "$stage" "$disks/payload.img"
    rm -rf "$stage"
}

# Makes what is missing, or was made by another version of this file.
make_disks() {
    local version
    version=$(sha256sum "$here/disks.sh" | cut -d' ' -f1)
    if [ -n "$again" ] || [ "$(cat "$disks/version" 2> /dev/null)" != "$version" ]; then
        # shellcheck disable=SC2016 # apt expands it
        [ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | head -n 1)
        [ -n "$mirror" ] || die "--mirror is needed: apt names none"
        rm -f "$disks/version"
        make_base
        make_machine
        printf '%s\n' "$version" > "$disks/version"
    fi
    make_payload
}
