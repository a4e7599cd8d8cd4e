"""The `geo3d` command.

Importing this room sets how OpenMP's threads wait in this process: see :mod:`geo3d.cli.waiting`. Commands import torch
after that.
"""

from geo3d.cli.waiting import set_up_waiting

set_up_waiting()
