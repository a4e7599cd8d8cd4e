"""Runs exported programs as a robot's process does: torch and the operators, nothing else of geo3d.

Reads from standard input lines of a program, a file of inputs and one to write outputs to; says what was imported.
"""

import json
import sys

import torch

import geo3d.ops  # noqa: F401  the operators enter torch's dispatcher

for line in sys.stdin:
    path, inputs, outputs = json.loads(line)
    program = torch.export.load(path).module()
    found = []
    for args, named in torch.load(inputs):
        with torch.no_grad():
            found.append(program(*args, **named))
    torch.save(found, outputs)
    rooms = {name.split(".")[1] for name in sys.modules if name.startswith("geo3d.")}
    print(json.dumps(sorted(rooms)), flush=True)
