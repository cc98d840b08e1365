"""Settings of the whole suite, made before torch is loaded."""

import os

# Threads that have nothing to do sleep: beside other busy processes, spinning ones take the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Models here are tiny: a second thread takes more processor time than it saves. Tests of threads ask for theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
