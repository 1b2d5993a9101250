#!/bin/sh
# Starts as root, for port 53; named itself goes on as bind.
set -e
mkdir -p /run/named
chown root:bind /run/named
chmod 0775 /run/named
exec /usr/sbin/named -u bind "$@"
