#!/bin/sh
# Runs what stands in /docker-entrypoint.d, then the server, whose workers drop to www-data.
set -e
if [ "$1" = nginx ] && find /docker-entrypoint.d/ -mindepth 1 -maxdepth 1 -type f | read -r _; then
    for script in /docker-entrypoint.d/*.sh; do
        if [ -x "$script" ]; then echo "entrypoint: $script"; "$script"; fi
    done
fi
exec "$@"
