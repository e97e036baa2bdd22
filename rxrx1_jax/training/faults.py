"""What ends a command in one line, `error: ...`, and exit code 1. Needs no JAX."""

import errno
import os
import traceback
from pathlib import Path

# Of the variables that JAX reads, those that choose devices.
VARIABLES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # rxrx1_jax.main adds it to XLA_FLAGS
MEMORY = (
    "lower optim.batch_size or raise optim.accumulation (training), lower eval.batch_size "
    "(evaluation), model.width or data.crop, or choose model.dtype=bfloat16"
)


def one_line(error: Exception, where: str | os.PathLike = "") -> str:
    """What to tell of an error; empty if it is a fault of the program, which needs its traceback.

    Told are the package's own errors, those of the system, and those of the devices.
    where: the folder that is written to, for errors that do not name a file.
    """
    kind, text = type(error), " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    source = Path(frames[-1].filename).as_posix() if frames else ""
    if kind.__module__.startswith("rxrx1_jax."):
        return text
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory ({text[:200] or 'of this machine'}): {MEMORY}"
    if source.endswith(("jax/_src/xla_bridge.py", "jax/_src/config.py")):
        values = {k: os.environ.get(k, "").replace(DETERMINISTIC, "").strip() for k in VARIABLES}
        given = ", ".join(f"{name}={value}" for name, value in values.items() if value)
        said = text.partition(" (")[0] or "no such device"
        return f"JAX does not start ({said}); check {given or 'the installation of JAX'}"
    if kind.__name__ == "JaxRuntimeError":
        return f"the device failed ({text[:200]}); the same command resumes"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = error.filename or where or "a file"
        return f"{file}: {error.strerror}; make space, and the same command resumes"
    if isinstance(error, OSError):
        return text
    return ""
