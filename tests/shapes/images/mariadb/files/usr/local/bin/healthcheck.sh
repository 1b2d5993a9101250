#!/bin/bash
# Connects as anybody: being refused by the server is an answer, too.
mariadb --protocol=tcp --host=127.0.0.1 --connect-timeout=5 --user=healthcheck -e 'select 1' 2>&1 | grep -q -e 'Access denied' -e '^1'
