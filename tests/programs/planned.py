"""Stands in for the interpreter in launch/local.sh: writes down its call, then does as planned.

PLAN has a word for each process, with commas between its starts: an exit status, "wait" (for
SIGTERM), "deaf" (to it) or "killed". Arguments: a folder for the calls, the interpreter's.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, arguments = Path(sys.argv[1]), sys.argv[2:]
if arguments[0] == "-c":
    exec(arguments[1])
    sys.exit()
me = os.environ["JAX_PROCESS_ID"]
before = len(list(folder.glob(f"call-{me}-*")))
variables = {n: x for n, x in os.environ.items() if n.startswith(("JAX_", "CUDA_VISIBLE"))}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("output of", me, flush=True)
print("error of", me, file=sys.stderr, flush=True)
temporary = folder / f"writing-{me}"
temporary.write_text(json.dumps([arguments, variables]))
temporary.rename(folder / f"call-{me}-{before}")
word = os.environ["PLAN"].split()[int(me)].split(",")[before]
if word == "wait":
    signal.alarm(60)
    signal.pause()
elif word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
elif word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.exit(int(word))
