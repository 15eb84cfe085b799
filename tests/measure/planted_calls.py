"""Functions that misbehave, for children to call."""

import os
import signal
import time

import numpy as np

from redline.errors import RefusedError


def echo(state, **arguments):
    return arguments


def remember(state, value):
    state["value"] = value


def recall(state):
    return state["value"]


def crash(state):
    os.write(2, b"about to fall\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(state):
    os._exit(3)


def hang(state):
    time.sleep(1000)


def hang_with_helper(state):
    import subprocess

    helper = subprocess.Popen(["sleep", "1000"])
    state["helper"] = helper
    return helper.pid


def eat_memory(state):
    kept = []
    while True:
        kept.append(np.ones(4 << 20))
        time.sleep(0.002)


def raise_memory_error(state):
    raise MemoryError


def refuse(state):
    raise RefusedError("no such layer", where="node 3", hint="use another")


def fail(state):
    raise ZeroDivisionError("by zero")


def print_loudly(state):
    print("to stdout " * 10000)
    return "done"
