"""Engines: what runs the devices. Each is a fleet; `loop` is the oracle that the others are held to."""
