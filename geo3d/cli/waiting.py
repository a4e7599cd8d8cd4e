"""How OpenMP's threads wait for each other; read when torch is loaded, so it must be set before.

Threads that are done with their part of a layer wait for the others by turning in a loop, by default for milliseconds.
Where another process wants the processor, that is what they take from the thread that they wait for: with a busy
process on each of two cores a training step took four to ten times as long, where twice would be fair
(docs/benchmarks.md). After the few turns set here they sleep instead.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: What users set who know better; any of them leaves all as it is.
USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
#: Turns of the loop in GNU's library, which comes with torch on Linux; some twenty microseconds.
SPIN_COUNT = 2_000
#: Milliseconds in LLVM's and Intel's, on other systems; they do not wait for less than one unless for none at all.
BLOCK_TIME = 1


def set_up_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set it in ``environment``, where no variable of :data:`USERS` does."""
    if not any(name in environment for name in USERS):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
        environment["KMP_BLOCKTIME"] = str(BLOCK_TIME)
