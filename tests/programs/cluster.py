"""Stands in for a program of a cluster: writes down how it is called, and answers as told.

Arguments: a folder, the name of the program, its own arguments. The folder has `calls` and
`answers`: lines "program word word: status text", of which the first that fits is the answer.
One that ends with "once" is an answer once.
"""

import json
import os
import sys
from pathlib import Path

VARIABLES = ("CONFIG", "PYTHON", "RESTARTS", "WORKDIR")
folder, name, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
variables = {variable: os.environ.get(variable) for variable in VARIABLES}
with open(folder / "calls", "a") as file:
    file.write(json.dumps([name, arguments, variables]) + "\n")
answers = folder / "answers"
lines = answers.read_text().splitlines()
for line in lines:
    what, _, answer = line.partition(": ")
    program, *words = what.split(" ")
    if program == name and all(any(word in a for a in arguments) for word in words):
        status, _, text = answer.partition(" ")
        if text.endswith(" once"):
            text = text.removesuffix(" once")
            lines.remove(line)
            answers.write_text("\n".join(lines))
        print(text)
        sys.exit(int(status))
