"""The world outside of the machine, in a network namespace that belongs to this process.

Makes the cable (tap0), then answers every DNS query for an address with 192.0.2.1 and every HTTP request with the address
it came from.
"""

import http.server
import socket
import struct
import subprocess
import threading

LINKS = """link set lo up
addr add 8.8.8.8/32 dev lo
tuntap add dev tap0 mode tap
addr add 192.0.2.1/24 dev tap0
link set tap0 up
"""


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"outside sees {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def answer(query):
    """An answer to a query of one question: an A record, or none for other types."""
    end = 12
    while query[end]:
        end += query[end] + 1
    question = query[12 : end + 5]
    is_address = question[-4:-2] == b"\0\1"
    record = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + bytes([192, 0, 2, 1])
    counts = struct.pack(">HHH", int(is_address), 0, 0)
    return query[:2] + b"\x81\x80\0\1" + counts + question + (record if is_address else b"")


def dns():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("8.8.8.8", 53))
    while True:
        query, client = server.recvfrom(4096)
        try:
            server.sendto(answer(query), client)
        except IndexError:
            pass


subprocess.run(["ip", "-batch", "-"], input=LINKS, text=True, check=True)
threading.Thread(target=dns, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Web).serve_forever()
