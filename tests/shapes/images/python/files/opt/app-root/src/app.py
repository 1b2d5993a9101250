import getpass
import os


def application(environ, start_response):
    with open("/opt/app-root/src/visits", "a") as visits:
        visits.write("x")
    start_response("200 OK", [("Content-Type", "text/plain")])
    owner = os.stat("/opt/app-root/src/visits").st_uid
    return [f"hello from python, {getpass.getuser()} {os.getuid()}:{os.getgid()} {owner}\n".encode()]
