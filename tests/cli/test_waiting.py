"""Threads of geo3d's commands wait without keeping a processor from others, unless their user says how."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from geo3d.cli.waiting import BLOCK_TIME, SPIN_COUNT, USERS, set_up_waiting


def test_it_is_set_before_torch_is_loaded() -> None:
    script = (
        "import os, sys, geo3d; before = dict(os.environ); import geo3d.cli.pretrain;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "print(before.get('GOMP_SPINCOUNT'), os.environ['GOMP_SPINCOUNT'], os.environ['KMP_BLOCKTIME'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in USERS}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", str(SPIN_COUNT), str(BLOCK_TIME)]


@pytest.mark.parametrize("name", USERS)
def test_what_users_set_stays(name: str) -> None:
    environment = {name: "ACTIVE"}
    set_up_waiting(environment)
    assert environment == {name: "ACTIVE"}
