#!/bin/bash
# Starts as root: owner and place of the data, then the user mysql; makes the database at the first start.
set -eo pipefail

secret() {
    local name=$1 file=$1_FILE
    if [ -n "${!file:-}" ]; then cat "${!file}"; else printf '%s' "${!name:-}"; fi
}

if [ "$1" = mariadbd ] && [ "$(id -u)" = 0 ]; then
    mkdir -p /var/lib/mysql
    find /var/lib/mysql /run/mysqld \! -user mysql -exec chown mysql: '{}' +
    exec gosu mysql "${BASH_SOURCE[0]}" "$@"
fi

if [ "$1" = mariadbd ] && [ ! -d /var/lib/mysql/mysql ]; then
    password=$(secret MARIADB_ROOT_PASSWORD)
    if [ -z "$password" ]; then echo >&2 'MARIADB_ROOT_PASSWORD is not set'; exit 1; fi
    echo 'entrypoint: making the database'
    mariadb-install-db --datadir=/var/lib/mysql --skip-test-db --auth-root-authentication-method=normal > /tmp/install.log
    # A server that only this script reaches, through the socket.
    "$@" --skip-networking --socket=/run/mysqld/init.sock &
    server=$!
    for _ in $(seq 600); do
        if mariadb-admin --user=root --socket=/run/mysqld/init.sock ping > /dev/null 2>&1; then break; fi
        sleep 0.1
    done
    mariadb --user=root --socket=/run/mysqld/init.sock <<- SQL
		CREATE DATABASE IF NOT EXISTS \`$MARIADB_DATABASE\`;
		CREATE USER 'root'@'%' IDENTIFIED BY '$password';
		GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;
		ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
	SQL
    for script in /docker-entrypoint-initdb.d/*.sql; do
        if [ -f "$script" ]; then
            mariadb --user=root --socket=/run/mysqld/init.sock -p"$password" "$MARIADB_DATABASE" < "$script"
        fi
    done
    kill "$server"
    wait "$server"
    unset password MARIADB_ROOT_PASSWORD
    echo 'entrypoint: the database is made'
fi
exec "$@"
