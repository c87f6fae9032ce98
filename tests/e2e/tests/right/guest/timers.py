"""Timers of each kind, armed before a freeze; says afterwards what became of them. Needs the wall clock to jump by
about a month meanwhile."""

import ctypes
import errno
import os
import struct
import threading
import time

CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1
ABSOLUTE, CANCEL_ON_SET = 1, 2
HOUR, DAY = 3600, 86400

libc = ctypes.CDLL(None, use_errno=True)


def timer(clock, flags, first, interval=0.0):
    """A timerfd(2)."""
    fd = libc.timerfd_create(clock, os.O_NONBLOCK)
    split = lambda t: (int(t), int((t - int(t)) * 1e9))
    setting = struct.pack("qqqq", *split(interval), *split(first))
    assert fd >= 0 and libc.timerfd_settime(fd, flags, setting, None) == 0, os.strerror(ctypes.get_errno())
    return fd


def state(fd):
    try:
        os.read(fd, 8)
        return "fired"
    except OSError as error:
        return "pending" if error.errno == errno.EAGAIN else errno.errorcode[error.errno]


start = time.time()
due = {
    "hour": start + HOUR,
    "day": start + DAY,
    "almost-a-month": start + 30 * DAY - HOUR,
    "in-two-months": start + 60 * DAY,
}
walls = {name: timer(CLOCK_REALTIME, ABSOLUTE, at) for name, at in due.items()}
change = timer(CLOCK_REALTIME, ABSOLUTE | CANCEL_ON_SET, start + 60 * DAY)
unarmed = time.clock_gettime(CLOCK_MONOTONIC)
ticker = timer(CLOCK_MONOTONIC, 0, 0.1, 0.1)
armed = time.clock_gettime(CLOCK_MONOTONIC)
own = {}


def sleeper():
    begun = time.clock_gettime(CLOCK_MONOTONIC)
    time.sleep(3)
    own["three"] = time.clock_gettime(CLOCK_MONOTONIC) - begun


thread = threading.Thread(target=sleeper)
thread.start()
open("/tmp/timers.ready", "w").close()
while time.time() < start + DAY:
    time.sleep(0.01)
said = {name: state(fd) for name, fd in walls.items()}
said["told-of-change"] = state(change)
thread.join()
said["own-three-seconds"] = own["three"]
# As many ticks as tenths passed: none is lost in the freeze, none comes twice.
least = int((time.clock_gettime(CLOCK_MONOTONIC) - armed) / 0.1)
count = struct.unpack("Q", os.read(ticker, 8))[0]
most = int((time.clock_gettime(CLOCK_MONOTONIC) - unarmed) / 0.1)
said["ticks"] = "all" if least <= count <= most else f"{count}, not {least} to {most}"
with open("/tmp/timers.part", "w") as file:
    file.writelines(f"{name} {value}\n" for name, value in said.items())
os.rename("/tmp/timers.part", "/tmp/timers.done")
