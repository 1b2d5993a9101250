<?php
echo 'hello from php, ', getenv('GREETING'), ', ', posix_getpwuid(posix_geteuid())['name'], "\n";
