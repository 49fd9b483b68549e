"""The blobs of a run: the program's module, with the plans that its scheme needs, and the frozen tensors baked in."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

from midhaul import tree
from midhaul.devices import blob
from midhaul.devices.blob import Blob
from midhaul.errors import SliceError
from midhaul.message import Op
from midhaul.models.translate import translate
from midhaul.program import Program
from midhaul.tree import Tree

_NAMED = ("whole", "head", "body", "front")  # what schemes ask devices to send


class DeviceBlobs:
    """Compiles the program for its devices, once for each set of frozen tensors.

    `work` are the ops that a scheme asks of a device, each with the slice that it trains. What any of them trains lies
    in the device's RAM, the rest in its blob.
    Raises: ModelError for a model that a device can't run.
    """

    def __init__(
        self, program: Program, work: Sequence[tuple[Op, str]], *, momentum: bool = False, keeps_start: bool = False
    ) -> None:
        # Its own copy: a fleet's threads mustn't see the module while an engine has other tensors in it.
        self._module = copy.deepcopy(program.module)
        self._program = program
        self._momentum, self._keeps_start = momentum, keeps_start
        trained = dict.fromkeys(spec for _, spec in work if spec != "none")
        self._fits = tuple(dict.fromkeys(spec for op, spec in work if spec != "none" and op != Op.BACKWARD))
        # A device that hands over its examples keeps them as they came, not as features.
        self._stored = 0 if any(op == Op.READ for op, _ in work) else None
        self._splits = tuple(dict.fromkeys(spec for op, spec in work if op == Op.BACKWARD))
        self.slices: dict[str, tuple[str, ...]] = {spec: program.names(spec) for spec in trained}
        for spec in _NAMED:
            try:
                self.slices.setdefault(spec, program.names(spec))
            except SliceError:
                continue  # a model of one layer has no body
        union = {name for spec in trained for name in self.slices[spec]}
        self.trained = tuple(name for name in program.initial if name in union)
        self._made: dict[tuple[str, int], Blob] = {}
        self._lock = threading.Lock()
        self.compile({n: v for n, v in program.initial.items() if n not in union}, 0)

    def compile(self, frozen: Tree, packing: int) -> Blob:
        """Gives the blob with these frozen tensors baked in, for one packing of int8 weights."""
        key = (tree.sha256(frozen), packing)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._compiled({**self._program.initial, **frozen}, packing)
            return self._made[key]

    def _compiled(self, whole: Tree, packing: int) -> Blob:
        net = translate(self._module, self._program.input_shape, whole, trained=self.trained)
        return blob.compile(
            net,
            self.slices,
            fits=self._fits,
            splits=self._splits,
            momentum=self._momentum,
            keeps_start=self._keeps_start,
            packing=packing,
            stored=self._stored,
        )
