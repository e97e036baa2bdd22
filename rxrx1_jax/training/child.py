"""A process that does run after run: imports, the dataset and its images are paid for once.

`workers.Worker` starts it, its stdin a socket, and sends it a command at a time. What fails ends
the process as it would end one of its own, so the next command gets a new one. The process ends
with the command that started it, however that ended: SIGTERM, where it is at work, saves its step.
"""

import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable

SIZE = 2**16  # bytes of a message that are read at a time
END = b"\n"  # of a message
DONE = b"0"  # the answer where the status is 0; there is none otherwise


def serve(work: Callable[[list[str]], int | None]) -> int:
    """Does `work` with the arguments of each command, until one fails or no more can come.

    A message is a line of JSON: the arguments, and whether there is a log. With it come
    descriptors: of stderr, of the log, and of a lock, which the process holds until it answers.
    """
    orders, own = socket.socket(fileno=os.dup(0)), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    waiting, busy = queue.SimpleQueue[tuple[bytes, list[int]]](), threading.Event()

    def listen() -> None:
        message = b"any"
        while message:
            given: list[int] = []
            try:
                message, given, *_ = socket.recv_fds(orders, SIZE, 3)
                while message and not message.endswith(END):
                    part = orders.recv(SIZE)
                    message = part and message + part
            except ConnectionError:
                message = b""
            if message:
                busy.set()
            waiting.put((message, given))
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, name="command", daemon=True).start()
    while True:
        message, given = waiting.get()
        if not message:
            return 0
        arguments, logged = json.loads(message)
        _speak(given[1] if logged else own, given[0])
        if status := work(arguments):
            return status
        _speak(own, nowhere)
        for number in given:
            os.close(number)
        busy.clear()
        orders.send(DONE)


def _speak(stdout: int, stderr: int) -> None:
    """What is said from now on goes there."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def run_module(arguments: list[str]) -> int | None:
    """`python -m MODULE ...`, of a module with a function main(argv) -> status."""
    _, module, *rest = arguments
    status: int | None = importlib.import_module(module).main(rest)
    import jax  # here: `workers`, which imports this module, needs no JAX

    jax.clear_caches()  # else the process grows by what was traced and compiled for each run
    return status


if __name__ == "__main__":
    from rxrx1_jax.data import records

    records.keep_open()
    sys.exit(serve(run_module))
