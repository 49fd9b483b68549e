"""midhaul trains tiny models on devices and large models on servers together, over a link that it measures."""

import os

__version__ = "0.1.0"

# Torch's threads wait for one another by spinning, unless told otherwise before torch is loaded: then they hold the
# cores that the compiled kernels' own threads need, and with other work on the machine they stall it. Who sets it is
# obeyed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
