#!/bin/bash
# Starts as root: owner of the data, then the user rabbitmq; the user of the broker from the environment.
set -eo pipefail
if [[ "$1" == rabbitmq* ]] && [ "$(id -u)" = 0 ]; then
    find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq '{}' +
    exec gosu rabbitmq "${BASH_SOURCE[0]}" "$@"
fi
if [ "$1" = rabbitmq-server ]; then
    cat > /etc/rabbitmq/conf.d/10-defaults.conf <<- CONF
		default_user = $RABBITMQ_DEFAULT_USER
		default_pass = $RABBITMQ_DEFAULT_PASS
		loopback_users = none
	CONF
fi
exec "$@"
