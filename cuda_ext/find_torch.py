"""Prints ``folder;version;CUDA version`` of this interpreter's torch without importing it, for CMake."""

import importlib.util
import runpy
import sys
from pathlib import Path

OLDEST = (2, 10)

spec = importlib.util.find_spec("torch")
if spec is None:
    sys.exit(f"{sys.executable} has no torch, whose headers the kernels need")
folder = Path(spec.origin).parent
facts = runpy.run_path(str(folder / "version.py"))
version = facts["__version__"]
if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
    sys.exit(f"torch {version} in {folder} is too old, the kernels need headers of {OLDEST[0]}.{OLDEST[1]} or later")
print(folder.as_posix(), version, facts["cuda"] or "", sep=";")
