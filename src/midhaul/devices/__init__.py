"""The boards that midhaul knows, each figure with its source."""
