bind 'tcp://0.0.0.0:9292'
bind 'unix:///tmp/puma.sock'
raise_exception_on_sigterm false
