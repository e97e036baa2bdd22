"""A command (the first argument, a module) that starts its children with the interpreter PYTHON.

RUNS, JSON, are the runs of rxrx1_jax.table1.
"""

import importlib
import json
import os
import sys

from rxrx1_jax import table1

sys.executable = os.environ["PYTHON"]
table1.RUNS = [tuple(run) for run in json.loads(os.environ.get("RUNS", "[]"))] or table1.RUNS
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
