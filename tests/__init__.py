import os

# Read when torch is loaded, so they must stand before that. Tensors here are so small that two threads only cost time;
# what depends on their number sets it. Waiting threads sleep instead of spinning: beside other work on the machine such a
# test would otherwise take fifty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
