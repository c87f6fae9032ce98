"""The guest's ends of connections.

peers.py listen             answers lines on port 7000 in capitals; /tmp/halves has a line for each piece that came
                            without its end, /tmp/ends one for each connection that ended: what was left of it
peers.py connect PORT N     connects N times to the host's PORT; after a resume looks at each once, without waiting
"""

import os
import socket
import sys
import threading
import time

GENERATION = "/run/smolvm/generation"
LOCK = threading.Lock()


def note(file, text):
    with LOCK, open(file, "a") as log:
        log.write(text + "\n")


def serve(stream):
    rest = b""
    try:
        while piece := stream.recv(4096):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                stream.sendall(line.upper() + b"\n")
            if rest:
                note("/tmp/halves", rest.decode())
    except OSError:
        pass
    note("/tmp/ends", rest.decode() or "nothing")


def listen():
    server = socket.create_server(("127.0.0.1", 7000), backlog=1024)
    for file in ("/tmp/halves", "/tmp/ends", "/tmp/listening"):
        open(file, "w").close()
    while True:
        stream, _ = server.accept()
        threading.Thread(target=serve, args=(stream,), daemon=True).start()


def generation():
    try:
        return open(GENERATION).read()
    except FileNotFoundError:
        return ""


def connect(port, count):
    before = generation()
    streams = []
    for index in range(count):
        stream = socket.create_connection(("10.0.2.2", port), 60)
        stream.setblocking(False)
        if index % 3 == 1:
            stream.send(b"GET / HT")
        if index % 3 == 2:
            try:
                while True:
                    stream.send(bytes(65536))
            except BlockingIOError:
                pass
        streams.append(stream)
    open("/tmp/connected", "w").close()
    while generation() == before:
        time.sleep(0.01)
    reset = 0
    for stream in streams:
        try:
            stream.recv(1)
        except (ConnectionResetError, ConnectionAbortedError):
            reset += 1
        except BlockingIOError:
            pass
    with open("/tmp/looked.part", "w") as file:
        file.write(f"{reset} of {count} reset\n")
    os.rename("/tmp/looked.part", "/tmp/looked")


if sys.argv[1] == "listen":
    listen()
else:
    connect(int(sys.argv[2]), int(sys.argv[3]))
