"""Does one thing (the first argument) and prints which audit events (PEP 578) of EVENTS it raised.

They are raised by a pickle that imports a class or function, by a program that is started and by a
connection.
"""

import fractions
import json
import pickle
import sys
from pathlib import Path

EVENTS = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect")
seen: list[str] = []
sys.addaudithook(lambda event, data: seen.append(event) if event in EVENTS else None)
what, *paths = sys.argv[1:]
if what == "pickle":
    pickle.loads(pickle.dumps(fractions.Fraction(1)))
elif what == "import":
    import rxrx1_jax.correct
    import rxrx1_jax.main
    import rxrx1_jax.report
    import rxrx1_jax.training.train  # noqa: F401

    seen = [event for event in seen if event == "socket.connect"]
elif what == "read":  # a dataset and a run
    import tensorboardX  # noqa: F401
    from small_state import make_state, restore

    from rxrx1_jax.data import records
    from rxrx1_jax.training import checkpoint

    dataset, workdir = map(Path, paths)
    _, state = make_state()
    seen.clear()
    for _ in range(2):
        records.Records(dataset)[0]
    with checkpoint.manager(workdir, 1):
        pass
    for resume, which in ((True, "last"), (False, "best")):
        restore(workdir, state, resume, which)
print("SEEN", json.dumps(seen))
