#!/bin/sh
# Starts as root: owner of the volumes; the broker itself goes on as mosquitto.
set -e
if [ "$(id -u)" = 0 ]; then chown -R mosquitto:mosquitto /mosquitto; fi
exec "$@"
