"""`slow_main` on a file system whose locks are for one host alone, on the host HOST."""

import fcntl
import os
import runpy
import socket
from pathlib import Path

fcntl.flock = lambda *_: None
socket.gethostname = lambda: os.environ["HOST"]
runpy.run_path(str(Path(__file__).with_name("slow_main.py")), run_name="__main__")
