"""The processes of one run: how they join, and how they are told to end.

`join` is to be called before anything touches a device. A process works by itself unless its
environment says that it is one of several:

- JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, wherever
  the processes are (launch/local.sh, launch/jobset.yaml);
- a Slurm step of more than one task (launch/slurm.sh);
- TPU workers that are named in the environment, as Kubernetes does;
- JAX_NUM_PROCESSES=auto: whatever cluster JAX finds, such as the hosts of a TPU VM, which nothing
  in the environment tells (launch/tpu_vm.sh), or Open MPI.

JAX_NUM_PROCESSES=1 keeps a process by itself in any cluster. Clusters are read by JAX
(`jax.distributed.initialize`); what is decided here is whether to ask it.

A run that is told to end saves the step it stands at, and its exit code says so. SIGTERM (a cluster
that takes the machine back), SIGHUP (a terminal that is closed) and the first Ctrl-C are such
notices. A second Ctrl-C ends the program at once, as it always does.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
START_SECONDS = 300  # until the processes that came give up those that did not
LOST_SECONDS = 60  # until a process that gives no sign of life counts as lost, which ends the run
LAST_WORDS_SECONDS = 1.0

# Of a run that was told to end and resumes when the same command is given again: EX_TEMPFAIL of
# sysexits.h. Any other code but 0 is a failure that starting again would repeat.
EXIT_CODE = 75

Item = TypeVar("Item")

_left = threading.Event()


class LaunchError(ValueError):
    """An environment in which the processes of a run cannot join; one line saying why."""


def join() -> bool:
    """Joins the other processes of the run, where there are any; returns whether there are.

    From then on a process that is lost ends the others within LOST_SECONDS, and one that ends
    without `leave` does so at once. On all but process 0 nothing more is printed to stdout.

    A process that finds the others missing after START_SECONDS says so and exits with status 1.

    Raises:
      LaunchError: variables missing or impossible, a port that is taken, an unknown cluster.
    """
    given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    count = given.get("JAX_NUM_PROCESSES")
    arguments = _explicit(given) if given and count not in ("1", "auto") else {}
    if count == "1" or not (given or _is_slurm() or _is_tpu()):
        return False

    watch = threading.Timer(START_SECONDS, _give_up, [arguments.get("coordinator_address")])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            **arguments,
            cluster_detection_method="deactivate" if arguments else None,
            # After this time JAX aborts with a stack trace.
            initialization_timeout=START_SECONDS + 30,
            heartbeat_timeout_seconds=LOST_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        what = "JAX finds no cluster here" if count == "auto" else "the processes did not join"
        raise LaunchError(f"{what}: {reason}") from error
    finally:
        watch.cancel()
    if jax.process_count() == 1:
        return False
    atexit.register(_end_alone, jax.process_index())
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")
    return True


def leave() -> None:
    """To be called where every process of the run ends in the same way; waits for none of them."""
    _left.set()


def check_shared(path: Path) -> None:
    """Waits for all processes; raises LaunchError in one that does not see the file `path`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("is the file there")
        if not path.exists():
            raise LaunchError(
                f"{path}: process 0 sees it, process {jax.process_index()} on "
                f"{socket.gethostname()} does not; choose a --workdir on a filesystem that all "
                "hosts share"
            )


class Preempted(Exception):
    """The run was told to end; `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"told to end at step {step:,}; the same command resumes from there")


class Notice:
    """Whether the run was told to end. A context manager: inside of it the signals are heard.

    Where `jax.distributed` joined several processes, JAX hears SIGTERM itself. Once one of them was
    told, JAX picks the next question that none has asked yet, and all stop there. So all must ask
    the same questions in the same order. Ctrl-C is then what it always is.
    """

    def __init__(self) -> None:
        self._given = False
        self._asked = 0
        self._alone = jax.process_count() == 1
        self._handlers: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []  # descriptors of the output that lead to one

    def __enter__(self) -> "Notice":
        if self._alone and threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGHUP:
            for terminal in self._terminals:  # writing to one that is closed would be an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        self._given = True

    def given(self) -> bool:
        """Whether to end now; asked once after each call of the step, by every process.

        Costs less than a microsecond, of several processes too: JAX's threads do the talking.
        """
        if not (self._given or self._alone):
            # JAX wants its questions numbered without a gap.
            self._asked += 1
            self._given = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._given

    def until_given(self, items: Iterable[Item], step: int) -> Iterator[Item]:
        """`items`; raises Preempted before the next one if the run was told to end at `step`.

        Every process must have equally many.
        """
        for item in items:
            if self.given():
                raise Preempted(step)
            yield item


def _end_alone(process: int) -> None:
    """At the end of a process that failed: JAX would let it wait for the others, and they for it.

    Without process 0 JAX aborts the others; those that fail as it does may say so before.
    """
    if not _left.is_set():
        sys.stderr.flush()
        sys.stdout.flush()
        if process == 0:
            time.sleep(LAST_WORDS_SECONDS)
        os._exit(1)


def _give_up(address: str | None) -> None:
    where = f" (process 0 is expected at {address})" if address else ""
    sys.stderr.write(
        f"error: after {START_SECONDS} s the processes of the run have not all joined{where}: "
        "check that each is started, and that they reach each other\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _explicit(given: dict[str, str]) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize from the three variables of `EXPLICIT`."""
    missing = [name for name in EXPLICIT if name not in given]
    if missing:
        raise LaunchError(
            f"{', '.join(given)} without {', '.join(missing)}: one process of several needs all"
            " three; unset them, or set JAX_NUM_PROCESSES=1, to run a single one"
        )
    numbers = {}
    for name, argument in zip(EXPLICIT[1:], ("num_processes", "process_id"), strict=True):
        if not given[name].isdecimal():
            raise LaunchError(f"{name}={given[name]}: expected a number")
        numbers[argument] = int(given[name])
    if not numbers["process_id"] < numbers["num_processes"]:
        raise LaunchError(
            f"JAX_PROCESS_ID={numbers['process_id']}: expected 0 to JAX_NUM_PROCESSES - 1 = "
            f"{numbers['num_processes'] - 1}"
        )
    address = given["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise LaunchError(f"JAX_COORDINATOR_ADDRESS={address}: expected host:port of process 0")
    if numbers["process_id"] == 0:
        _check_free(int(port))
    return {"coordinator_address": address, **numbers}


def _check_free(port: int) -> None:
    """Raises LaunchError where something listens on the port: JAX would crash on it."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise LaunchError(f"JAX_COORDINATOR_ADDRESS: port {port}: {error.strerror}") from error


def _is_slurm() -> bool:
    """Whether this is one of several tasks of a step. Makes all GPUs of such a task visible.

    In a batch script or an interactive shell SLURM_NTASKS is the number of tasks of the job,
    though the process is alone: only srun's steps have a node list, and a count of their own.
    """
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if "SLURM_STEP_NODELIST" not in env or tasks == 1:
        return False
    if env.get("SLURM_STEP_NUM_NODES") == str(tasks) and env.get("SLURM_GPUS_ON_NODE"):
        # JAX takes the GPU of the task's number on its node: all of them where it is the only one.
        gpus = range(int(env["SLURM_GPUS_ON_NODE"]))
        env.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, gpus)))
    return True


def _is_tpu() -> bool:
    """Whether this host is one of several of a TPU slice, or its slice one of several."""
    env = os.environ
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    return "," in hosts or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
