"""How fast midhaul is, beside what a person would write by hand."""
