"""Draws random numbers all the time; when the machine has been resumed, says what it drew from then on.

draw.py kernel            from the kernel, by calls that began after the resume
draw.py MODE              from generators in this process that were seeded before the freeze. MODE: `none` leaves
                          them alone, `file` looks at the generation file before each use, `hook` seeds them anew on
                          SIGUSR1

Writes /tmp/MODE.ready with its process id when it draws, /tmp/MODE.drawn with lines `SOURCE VALUE` after the resume.
"""

import ctypes
import os
import random
import secrets
import signal
import socket
import ssl
import struct
import sys
import time
import uuid

GENERATION = "/run/smolvm/generation"
DRAWS = 4


def generation():
    try:
        with open(GENERATION) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def vdso_getrandom():
    """getrandom as libc would call it without entering the kernel (vgetrandom, Linux 6.11): a function of a length.

    The vDSO's ELF image lies at AT_SYSINFO_EHDR (getauxval(3)); its state is in memory that the kernel asks us to map
    with certain flags, which it says when it is asked with a state size of ~0.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.getauxval.restype = ctypes.c_ulong
    base = libc.getauxval(33)
    at = lambda offset, form: struct.unpack_from(form, ctypes.string_at(base + offset, struct.calcsize(form)))
    table, size, count = at(32, "<Q")[0], at(54, "<H")[0], at(56, "<H")[0]
    headers = [at(table + i * size, "<IIQQQQQQ") for i in range(count)]
    load = next(h for h in headers if h[0] == 1)
    dynamic = next(h for h in headers if h[0] == 2)
    entries = dict(at(dynamic[2] + i, "<QQ") for i in range(0, dynamic[5], 16))
    strings, symbols = entries[5] - load[3], entries[6] - load[3]
    for index in range(1, 64):
        name, _, _, section, value, _ = at(symbols + 24 * index, "<IBBHQQ")
        if ctypes.string_at(base + strings + name) == b"__vdso_getrandom" and section:
            break
    else:
        return None
    call = ctypes.CFUNCTYPE(
        ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t
    )(base + value - load[3])
    asked = (ctypes.c_uint32 * 32)()
    assert call(None, 0, 0, ctypes.byref(asked), ctypes.c_size_t(-1).value) == 0
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    state = libc.mmap(None, 4096, asked[1], asked[2], -1, 0)
    assert state not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())

    def draw(length):
        buffer = ctypes.create_string_buffer(length)
        assert call(buffer, length, 0, state, asked[0]) == length
        return buffer.raw

    return draw


LISTENER = socket.create_server(("127.0.0.1", 0), backlog=64)


def connection():
    """Source port and first sequence number of a connection to a port of ours: tcp(7), TCP_REPAIR."""
    repair, queue, sequence = 19, 20, 21
    with socket.create_connection(LISTENER.getsockname()) as end:
        end.setsockopt(socket.IPPROTO_TCP, repair, 1)
        end.setsockopt(socket.IPPROTO_TCP, queue, 2)
        first = struct.unpack("I", end.getsockopt(socket.IPPROTO_TCP, sequence, 4))[0]
        end.setsockopt(socket.IPPROTO_TCP, repair, -1)
        return end.getsockname()[1], first


def write(path, text):
    """Makes a file that is there whole or not at all."""
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)


def kernel_sources():
    pool = open("/dev/urandom", "rb", buffering=0)
    sources = {
        "getrandom": lambda: os.getrandom(16),
        "urandom": lambda: pool.read(16),
        "uuid4": lambda: uuid.uuid4().bytes,
        "secrets": lambda: secrets.token_bytes(16),
        "kernel-uuid": lambda: open("/proc/sys/kernel/random/uuid", "rb").read(),
    }
    vdso = vdso_getrandom()
    if vdso:
        sources["vdso"] = lambda: vdso(16)
    return sources


def seeded_sources():
    random.seed()
    ssl.RAND_bytes(1)
    return {
        "python-random": lambda: random.getrandbits(128).to_bytes(16, "big"),
        "openssl": lambda: ssl.RAND_bytes(16),
    }


def seed_anew(*_):
    fresh = os.urandom(64)
    random.seed(fresh)
    ssl.RAND_add(fresh, 32.0)


def main():
    mode = sys.argv[1]
    sources = kernel_sources() if mode == "kernel" else seeded_sources()
    if mode == "hook":
        signal.signal(signal.SIGUSR1, seed_anew)
    if mode == "kernel":
        # What the kernel draws once for all connections it has drawn before the freeze.
        connection()
    before = generation()
    drawn = []
    turn = 0
    while True:
        now = generation()
        resumed = now != before
        if resumed and mode == "file":
            seed_anew()
        for name, draw in sources.items():
            value = draw()
            if resumed:
                drawn.append(f"{name} {value.hex()}")
        if resumed:
            before = now if len(drawn) >= DRAWS * len(sources) else before
            if before == now:
                break
        turn += 1
        if turn == 3:
            write(f"/tmp/{mode}.ready", str(os.getpid()))
        time.sleep(0.01)
    if mode == "kernel":
        port, first = connection()
        drawn += [f"tcp-port {port}", f"tcp-sequence {first}"]
    write(f"/tmp/{mode}.drawn", "\n".join(drawn) + "\n")


main()
