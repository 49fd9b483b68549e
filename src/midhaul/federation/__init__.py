"""A run on many machines: what its operator starts, sees and keeps secret."""
