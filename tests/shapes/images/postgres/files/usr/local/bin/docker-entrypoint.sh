#!/bin/bash
# Starts as root: owner and place of the data, then the user postgres; makes the cluster at the first start.
set -eo pipefail

if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chmod 0700 "$PGDATA"
    chmod 3775 /var/run/postgresql
    find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
    find /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
    exec gosu postgres "${BASH_SOURCE[0]}" "$@"
fi

if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "$POSTGRES_PASSWORD" ]; then echo >&2 'POSTGRES_PASSWORD is not set'; exit 1; fi
    initdb --username=postgres --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 > /tmp/initdb.log
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -p 5432" -w start
    psql --no-password --dbname postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
    for script in /docker-entrypoint-initdb.d/*.sql; do
        if [ -f "$script" ]; then psql --no-password --dbname "$POSTGRES_DB" -v ON_ERROR_STOP=1 -f "$script"; fi
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    unset POSTGRES_PASSWORD
    echo 'entrypoint: the cluster is made'
fi
exec "$@"
