"""Compiled kernels that train many tiny models at once: a device to a thread, all of its steps in one call."""
