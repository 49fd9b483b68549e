"""Working together at inference: the tiny model on the device and the large one on the server answer together."""
