#!/bin/sh
sed "s/@GREETING@/$GREETING/" /etc/nginx/greeting.template > /var/www/html/index.html
