#!/usr/bin/env bash
# Makes the root file systems that tests/shapes runs, from Debian packages: scripts/shapes.sh [NAME...]
#
# What NAME is made of stands in tests/shapes/images/NAME: `packages`, a list for apt; `users`, lines of "NAME ID HOME", who
# are there before the packages are; `files`, laid over them as root's; `setup`, a shell script that runs in the image at the
# end. The result is target/shapes/NAME/oci, an OCI image layout of two layers: a minimal Debian that all share, and what
# the program adds. What is there already and made of the same things is left alone: a first run loads 250 MB and takes
# some minutes, a second one no second. The machine is not touched; only target/shapes is written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/packages.sh
. scripts/packages.sh

suite=bookworm
mirror=${SHAPES_MIRROR:-http://deb.debian.org/debian}
images=$PWD/tests/shapes/images
work=$PWD/target/shapes

# What something is made of: its recipe here and, for a program, its directory.
key() {
    {
        declare -f in_root make_base
        if [ $# -gt 0 ]; then
            declare -f make_image
            (cd "$images/$1" && find . -type f -printf '%p %m\n' -exec cat {} + | sort)
        fi
    } | sha256sum | cut -c 1-64
}

is_made() {
    [ "$(cat "$work/$1/key" 2> /dev/null)" = "$2" ]
}

# in_root ROOT COMMAND...: runs it with ROOT as its root directory, and with the lists and packages that all share.
in_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # the inner shell expands it
    unshare --mount --pid --fork --kill-child -- bash -euc '
        root=$1 work=$2
        shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount --bind "$work/lists" "$root/var/lib/apt/lists"
        mount --bind "$work/debs" "$root/var/cache/apt"
        mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
        exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
            LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive ${http_proxy:+http_proxy="$http_proxy"} "$@"
    ' bash "$root" "$work" "$@"
}

# A minimal Debian, cut down as the official image of it is.
make_base() {
    local new=$work/base.new root=$work/base.new/root
    rm -rf "$new"
    mkdir -p "$new" "$work/lists" "$work/debs/archives/partial"
    debootstrap --variant=minbase --cache-dir="$work/debs/archives" --include=gosu "$suite" "$root" "$mirror" > "$new/log" ||
        { tail -n 20 "$new/log" >&2; die "debootstrap failed"; }
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cat > "$root/etc/dpkg/dpkg.cfg.d/image" <<- 'END'
		force-unsafe-io
		path-exclude /usr/share/doc/*
		path-exclude /usr/share/man/*
		path-exclude /usr/share/locale/*
		path-include /usr/share/locale/locale.alias
	END
    printf '%s\n' 'Debug::NoLocking "true";' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' 'Acquire::Languages "none";' \
        > "$root/etc/apt/apt.conf.d/image"
    find "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale "$root"/var/log -mindepth 1 \
        ! -name locale.alias -type f -delete
    find "$root"/dev "$root"/var/cache/apt -mindepth 1 -delete
    mkdir -p "$root/var/cache/apt/archives"
    : > "$root/etc/resolv.conf"
    tar --numeric-owner --sort=name --xattrs -C "$root" -cf "$new/layer.tar" .
    umoci init --layout "$new/oci"
    umoci new --image "$new/oci:1"
    umoci raw add-layer --image "$new/oci:1" "$new/layer.tar"
    umoci unpack --image "$new/oci:1" "$new/bundle" > /dev/null 2>&1
    rm -rf "$root" "$new/layer.tar"
    key > "$new/key"
    rm -rf "$work/base"
    mv "$new" "$work/base"
}

# All at once, so that what makes the images side by side needs no network.
load_packages() {
    local name
    in_root "$work/base/bundle/rootfs" apt-get update -qq
    for name in "$@"; do tr -s ' ' '\n' < "$images/$name/packages"; done |
        in_root "$work/base/bundle/rootfs" xargs apt-get install -qq --yes --download-only --no-install-recommends \
            > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "the packages could not be loaded"; }
}

make_image() {
    local name=$1 new=$work/$1.new root=$work/$1.new/bundle/rootfs user id home
    rm -rf "$new"
    mkdir -p "$new/oci"
    cp -al "$work/base/oci/blobs" "$new/oci/blobs"
    cp "$work/base/oci/index.json" "$work/base/oci/oci-layout" "$new/oci"
    cp -a "$work/base/bundle" "$new/bundle"
    if [ -f "$images/$name/users" ]; then
        while read -r user id home; do
            in_root "$root" groupadd --system --gid "$id" "$user"
            in_root "$root" useradd --system --uid "$id" --gid "$id" --no-create-home --home-dir "$home" "$user" 2> /dev/null
        done < "$images/$name/users"
    fi
    # shellcheck disable=SC2046 # words are packages
    in_root "$root" apt-get install -qq --yes --no-install-recommends $(cat "$images/$name/packages") > "$new/log" 2>&1 ||
        { tail -n 30 "$new/log" >&2; die "the packages of $name could not be installed"; }
    if [ -d "$images/$name/files" ]; then
        tar -C "$images/$name/files" --owner=0 --group=0 --mode=u+rwX,go=rX -cf - . |
            tar -C "$root" --no-overwrite-dir -xf -
    fi
    if [ -f "$images/$name/setup" ]; then in_root "$root" sh -eux < "$images/$name/setup" >> "$new/log" 2>&1 ||
        { tail -n 30 "$new/log" >&2; die "the setup of $name failed"; }; fi
    find "$root"/var/log "$root"/var/cache/debconf "$root"/var/lib/dpkg "$root"/var/cache/apt -type f \
        \( -path '*/log/*' -o -name '*-old' -o -name '*.bin' \) -delete
    umoci repack --refresh-bundle=false --image "$new/oci:1" "$new/bundle" > /dev/null 2>&1
    umoci gc --layout "$new/oci" > /dev/null 2>&1
    rm -rf "$new/bundle"
    key "$name" > "$new/key"
    rm -rf "${work:?}/$name"
    mv "$new" "$work/$name"
    echo "$name: $(du -sh --apparent-size "$work/$name/oci" | cut -f 1)B"
}

if [ "${1-}" = --image ]; then
    make_image "$2"
    exit
fi

need_root "$@"
# As the machine's own apt goes.
if [ -z "${http_proxy-}" ]; then eval "$(apt-config shell http_proxy Acquire::http::Proxy)"; fi
if [ -n "${http_proxy-}" ]; then export http_proxy; fi
need debootstrap=debootstrap umoci=umoci unshare=util-linux
[ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || need debian-archive-keyring=debian-archive-keyring
mkdir -p "$work"
exec 9> "$work/lock"
flock 9

if [ $# -eq 0 ]; then
    for name in "$images"/*; do set -- "$@" "${name##*/}"; done
fi
is_made base "$(key)" || { say "images of programs: a minimal Debian ($suite), and packages"; make_base; }
missing=()
for name in "$@"; do is_made "$name" "$(key "$name")" || missing+=("$name"); done
if [ ${#missing[@]} -gt 0 ]; then
    say "images of programs: ${missing[*]}"
    load_packages "${missing[@]}"
    printf '%s\n' "${missing[@]}" | xargs -P "$(nproc)" -I NAME "${BASH_SOURCE[0]}" --image NAME
fi
