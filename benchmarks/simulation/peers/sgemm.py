"""How fast this machine multiplies matrices in float32: what the other sides are measured against.

`sgemm.py FOLDER THREADS`; a round is one product of SIZE x SIZE matrices.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from protocol import Arrays, Line, serve

SIZE = 2048
FLOPS = 2.0 * SIZE**3


class Sgemm:
    """A product of two matrices."""

    loss = 0.0

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.left, self.right = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE)
        self.out = torch.empty(SIZE, SIZE)

    def facts(self) -> dict[str, Any]:
        return {"flops": FLOPS}

    def arrays(self) -> Arrays:
        return {}

    def round(self, number: int) -> None:
        torch.mm(self.left, self.right, out=self.out)


if __name__ == "__main__":
    serve(Line(), lambda: Sgemm(int(sys.argv[2])))
