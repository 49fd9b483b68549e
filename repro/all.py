"""Every published figure that midhaul runs again, and one table at the end. `python -m repro.all`

A miss is printed as a miss. The status is 1 if a module ended with an error, or if an identity that must hold doesn't.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.util import find_spec

from repro import Row, table

MODULES = tuple(
    name
    for name in (
        "identities",
        "fuzz",
        "faults",
        "mnist_fedavg",
        "fedprox_synthetic",
        "heterofl_mnist",
        "har",
        "two_way",
        "asynchronous",
        "cascade",
        "splitfed_fashion",
        "fedgkt_digits",
        "fedlite",
        "update_bytes",
        "reptile_sine",
        "pfedme_mnist",
        "meta_omniglot",
        "clinc_lora",
    )
    if find_spec(f"repro.{name}")
)


def main(modules: Sequence[str] = MODULES) -> int:
    """Runs the modules in turn; gives the status to exit with."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in modules:
        print(f"\n## {name}\n", flush=True)
        began = time.perf_counter()
        try:
            rows += importlib.import_module(f"repro.{name}").main([])
        except Exception:  # the others may still run; the table and the status say that this one did not
            traceback.print_exc()
            failed.append(name)
            rows.append(Row(name, "-", "ended with an error, see above", False))
        print(f"\n{name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n## All targets\n\n{table(rows)}")
    broken = [row.what for row in rows if row.must and not row.passed]
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or MODULES))
