"""The instructions that a device counts while it does an op, in Unicorn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from midhaul.devices.blob import Blob
from midhaul.devices.machines import open_machine
from midhaul.devices.plan import PlanKind
from midhaul.devices.profiles import Board
from midhaul.link.frame import Frame, pack, unpack
from midhaul.message import Op
from midhaul.runtime.remote import METRICS
from midhaul.runtime.wire import PacketWire

LR = 0.01


class Counted:
    """A device with a blob and rows, which is asked for ops one after another."""

    def __init__(
        self, core: str, made: Blob, x: Tensor, y: Tensor, *, board: Board | None = None, compiler: str = "gcc"
    ) -> None:
        self.made, self.rows = made, len(x)
        slot = -(-(len(made.data) + 16) // 4096) * 4096
        self.wire = PacketWire(
            lambda: open_machine(f"unicorn:{core}", board=board, slot_bytes=slot, compiler=compiler), None
        )
        self._ask(Op.HELLO, {"seed_low": 3, "seed_high": 0})
        data = torch.from_numpy(np.frombuffer(made.data, np.uint8).copy())
        for at in range(0, len(data), 8192):
            self._ask(Op.LOAD, {"what": "blob", "step": at, "rows": len(data)}, {"blob": data[at : at + 8192]})
        self._ask(Op.PUSH, {"rows": "train", "step": 0}, {"x": x, "y": y})
        self.pushed = self._ticks()

    def _ask(self, op: Op, settings: dict[str, object] | None = None, tree: dict[str, Tensor] | None = None) -> Frame:
        sent = pack(Frame(op, False, 1, 0, settings or {}, tree or {}))  # type: ignore[arg-type]
        got = unpack(self.wire.ask(sent, 300.0), self.made.trained, METRICS)
        assert "error" not in got.metrics, (op, got.metrics)
        return got

    def _ticks(self) -> int:
        return int(self._ask(Op.STATS).metrics["ticks"])

    def predict(self) -> int:
        """Gives the instructions of the forward passes of all rows."""
        self._ask(Op.PREDICT, {"rows": "train"})
        return self._ticks()

    def fit(self, batch: int, epochs: int = 1, momentum: float = 0.0, decay: float = 0.0) -> int:
        """Gives the instructions of so many epochs of training, of the blob's first slice."""
        slice = next(one.slice for one in self.made.plans if one.kind == PlanKind.TRAIN)
        how = {"lr": LR, "momentum": momentum, "weight_decay": decay, "loss": "cross_entropy"}
        self._ask(Op.FIT, {**how, "batch": batch, "epochs": epochs, "train": slice, "send": "none"})
        return self._ticks()

    def split(self, batch: int, momentum: float = 0.0) -> tuple[int, int]:
        """Gives the instructions of FORWARD and of BACKWARD of a batch, of the blob's first slice."""
        slice = next(one.slice for one in self.made.plans if one.kind == PlanKind.BACKWARD)
        up = self._ask(Op.FORWARD, {"rows": "train", "batch": batch, "step": 0, "epoch": 0, "what": "h"})
        ahead = self._ticks()
        how = {"lr": LR, "momentum": momentum, "weight_decay": 0.0, "train": slice}
        draws = torch.Generator().manual_seed(1)
        self._ask(Op.BACKWARD, how, {"g": torch.randn(up.tree["h"].shape, generator=draws) * 0.01})
        return ahead, self._ticks()

    def close(self) -> None:
        """Ends the device."""
        self.wire.close()
