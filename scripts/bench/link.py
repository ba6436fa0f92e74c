"""Two network namespaces joined by a link of a held rate, which goes away with its block.

Needs root, `ip` and `tc`. The rate is held by a token bucket (`tbf`) at each end, so each direction has it for itself.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
EX_NO_ROOT = 77

# Sends for a while and counts nothing: the interface counts.
SEND = """
import socket, sys, threading, time
own, other, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
server = socket.create_server((own, 5201))
def sink():
    connection, _ = server.accept()
    while connection.recv(1 << 20):
        pass
threading.Thread(target=sink, daemon=True).start()
for attempt in range(100):
    try:
        out = socket.create_connection((other, 5201))
        break
    except OSError:
        time.sleep(0.05)
block, end = bytes(1 << 20), time.monotonic() + seconds
while time.monotonic() < end:
    out.sendall(block)
time.sleep(0.5)
"""


class Link:
    """`with Link() as link:` the namespaces `link.namespaces` with the addresses `link.addresses`."""

    def __init__(self, rate="1gbit"):
        tag = f"sb{os.getpid()}"
        self.rate = rate
        self.namespaces = [f"{tag}a", f"{tag}b"]
        # Names of interfaces hold 15 letters.
        self.interfaces = [f"{tag}va"[:15], f"{tag}vb"[:15]]
        self.addresses = ["10.213.0.1", "10.213.0.2"]

    def __enter__(self):
        if os.geteuid() != 0:
            print("bench: a link between network namespaces needs root: run this bench with sudo", file=sys.stderr)
            sys.exit(EX_NO_ROOT)
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                print(f"bench: there is no {program}: install Debian package iproute2", file=sys.stderr)
                sys.exit(69)
        (a, b), (va, vb) = self.namespaces, self.interfaces
        try:
            for namespace in (a, b):
                ip("netns", "add", namespace)
            ip("link", "add", va, "netns", a, "type", "veth", "peer", "name", vb, "netns", b)
            for namespace, interface, address in zip(self.namespaces, self.interfaces, self.addresses):
                ip("-n", namespace, "address", "add", f"{address}/30", "dev", interface)
                ip("-n", namespace, "link", "set", "lo", "up")
                ip("-n", namespace, "link", "set", interface, "up")
                # The bucket holds several of the packets that the kernel joins up to 64 KB.
                bucket = ["root", "tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms"]
                ip("netns", "exec", namespace, "tc", "qdisc", "add", "dev", interface, *bucket)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL, check=False)

    def inside(self, which):
        """The words before a command that runs on side `which`."""
        return ["ip", "netns", "exec", self.namespaces[which]]

    def sent_bytes(self):
        """Bytes that left each side so far, with their headers."""
        counts = []
        for namespace, interface in zip(self.namespaces, self.interfaces):
            told = ip("-n", namespace, "-s", "-j", "link", "show", interface)
            counts.append(json.loads(told)[0]["stats64"]["tx"]["bytes"])
        return counts

    def measured_rate(self, seconds=3.0):
        """Bytes a second in one direction while both are full."""
        running = [
            subprocess.Popen([*self.inside(i), sys.executable, "-c", SEND, self.addresses[i], self.addresses[1 - i], str(seconds)])
            for i in range(2)
        ]
        # Both have begun, and the token bucket is empty.
        time.sleep(1.0)
        before, began = self.sent_bytes(), time.monotonic()
        time.sleep(seconds - 1.5)
        after, took = self.sent_bytes(), time.monotonic() - began
        for process in running:
            process.wait()
        return sum(b - a for a, b in zip(before, after)) / 2 / took

    def for_peer(self):
        """What the peer is told so that its ranks run at both ends."""
        return {
            "places": [self.inside(0), self.inside(1)],
            "interfaces": self.interfaces,
            "address": self.addresses[0],
        }

    def for_ours(self):
        """The same for mpirun: two hosts, reached through `agent.sh`."""
        network = "10.213.0.0/30"
        pairs = zip(self.addresses, self.namespaces)
        return {
            "launcher": self.inside(0),
            "mpirun": ["--host", ",".join(self.addresses)],
            "environment": {
                "SEEDBED_LINK": " ".join(f"{address}={namespace}" for address, namespace in pairs),
                "OMPI_MCA_plm_rsh_agent": str(HERE / "agent.sh"),
                "OMPI_MCA_oob_tcp_if_include": network,
                "OMPI_MCA_btl": "self,tcp",
                "OMPI_MCA_btl_tcp_if_include": network,
            },
        }


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"bench: ip {' '.join(words)}: {done.stderr.strip()}", file=sys.stderr)
        sys.exit(69)
    return done.stdout
