#!/bin/sh
set -e
# A flag, or what is no program, is for node.
if [ "${1#-}" != "${1}" ] || [ -z "$(command -v "${1}")" ]; then set -- node "$@"; fi
exec "$@"
