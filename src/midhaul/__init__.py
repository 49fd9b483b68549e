"""midhaul trains tiny models on devices and large models on servers together, over a link that it measures."""

__version__ = "0.1.0"
