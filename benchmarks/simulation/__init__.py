"""How fast rounds of tiny models are simulated, here and by others. `python -m benchmarks.simulation`"""
