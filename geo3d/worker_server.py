"""What the process that loader workers are forked from imports first; it has one thread, and forks with no lock held.

Not for import anywhere else: it sets up the process for that work.
"""

import os
import signal

# numpy's BLAS starts its threads when it is imported. Workers have one thread each anyway.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
# A signal to the whole group is for the training process: this one and the workers end with that.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
