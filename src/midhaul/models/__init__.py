"""Tiny models, large models, and views of them: slices, cuts, width, adapters, and what each layer costs."""
