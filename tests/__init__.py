import os

# Waiting OpenMP threads sleep instead of spinning: on a machine that does other work too, tests with two threads would
# otherwise take fifty times as long. Read when torch is loaded, so it must stand before that.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
