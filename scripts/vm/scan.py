"""Lists the open ports of 192.0.2.2: one line each, as in `22/tcp` or `53/udp`.

A TCP port is open when a connection comes about. A UDP port is closed when an ICMP message "port unreachable" comes back.
"""

import asyncio
import resource
import select
import socket
import struct
import sys
import time

HOST = "192.0.2.2"
PORTS = range(1, 65536)
# Connections at the same time.
WIDTH = 500


async def tcp(port, slots):
    async with slots:
        for limit in (3, 10):
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), limit)
                writer.transport.abort()
                return f"{port}/tcp"
            except (TimeoutError, asyncio.TimeoutError):
                continue
            except OSError:
                return None
        return None


async def all_tcp():
    slots = asyncio.Semaphore(WIDTH)
    return await asyncio.gather(*(tcp(port, slots) for port in PORTS))


def unreachable(listener, seconds):
    """Ports that the host calls unreachable within so many seconds of silence."""
    closed = set()
    while select.select([listener], [], [], seconds)[0]:
        packet = listener.recv(2048)
        icmp = packet[(packet[0] & 15) * 4 :]
        if icmp[:2] != b"\x03\x03":
            continue
        inner = icmp[8:]
        start = (inner[0] & 15) * 4
        closed.add(struct.unpack(">H", inner[start + 2 : start + 4])[0])
    return closed


def all_udp():
    listener = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    left = set(PORTS)
    # The machine may be slow, answers may be lost, and Linux sends only so many a second (icmp_msgs_per_sec): whoever
    # is left is asked again, ever more slowly.
    for slower, silence in enumerate((2, 4, 4, 8, 8, 15, 15)):
        for number, port in enumerate(sorted(left)):
            sender.sendto(b"", (HOST, port))
            if number % 100 == 99:
                left -= unreachable(listener, 0)
                time.sleep(0.01 * (slower + 1))
        left -= unreachable(listener, silence)
    return [f"{port}/udp" for port in left]


resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
found = [port for port in asyncio.run(all_tcp()) if port] + all_udp()
print("\n".join(sorted(found, key=lambda port: (port.split("/")[1], int(port.split("/")[0])))), file=sys.stdout)
