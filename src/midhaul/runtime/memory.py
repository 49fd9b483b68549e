"""What a run takes of memory: the bound that a person sets, what is resident, and what devices take side by side."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from midhaul import config, rules, tree
from midhaul.errors import ConfigError
from midhaul.kit import Kit, Scheme
from midhaul.message import Kind, Message, Op
from midhaul.program import Indices, Population, Program
from midhaul.units import format_bytes

AUTO = "auto"
AUTO_CHUNK_BYTES = 10**9
# Measured on x86-64 with Python 3.11 and torch 2.13 (python -m benchmarks.scaling): a run of ten small devices peaks at
# 0.36 GB, and each of 100,000 devices adds 2 kB to its rows, for its name, its group and what the link knows of it.
PROCESS_BYTES = 450 * 10**6
DEVICE_BYTES = 2_500
# Of the weights that a cohort sends, while a round ends: as they were trained, as a link delivers them, put together.
REPLY_COPIES = 3
_LEAST_CHUNK_BYTES = 10**7


def chunk_bytes(memory: str, population: Population, models_bytes: int, replies_bytes: int = 0) -> int:
    """Gives what is left for the devices that train at once, of what the whole run may take: `run.memory`.

    `models_bytes` are those of the server's models, `replies_bytes` what a round's replies take. All is reckoned, not
    asked of the system, so that a run is cut into the same chunks wherever it runs.
    Raises: ConfigError if the bound is no size, or if what else there is leaves too little.
    """
    if memory == AUTO:
        return AUTO_CHUNK_BYTES
    # A server keeps its models, their optimiser's two states, and the new models while a round ends.
    given, taken = config.parse_bytes(memory), PROCESS_BYTES + resident_bytes(population) + 6 * models_bytes
    whole = taken + replies_bytes
    if given < whole + _LEAST_CHUNK_BYTES:
        replies = f", a round's replies {format_bytes(replies_bytes)}" if replies_bytes else ""
        raise ConfigError(
            f"run.memory is {memory}, and libraries, data and models take {format_bytes(taken)} before a device is "
            f"trained{replies}; allow {format_bytes(whole + 20 * _LEAST_CHUNK_BYTES)} or more, or take fewer devices"
        )
    return given - whole


def replies_bytes(kit: Kit, scheme: Scheme, population: Population) -> int:
    """Gives what the weights take that a round's devices send.

    Limits: activations and logits aren't reckoned, as a scheme says nowhere of how many rows they are at once.
    """
    if Kind.WEIGHTS not in scheme.up or Kind.ACTIVATIONS in scheme.up:
        return 0
    num = len(population.devices)
    num = kit.cohort_size(num) if "cohort" in scheme.admits else num
    slices = {(group.program, work.train) for group in kit.groups for work in scheme.work(kit.cfg)}
    sent = (tree.num_bytes(tree.select(program.initial, program.names(train))) for program, train in slices)
    return REPLY_COPIES * num * max(sent, default=0)


def resident_bytes(population: Population) -> int:
    """Gives what a population takes: its rows, and which of them are whose."""
    held = (population.x, population.y)
    rows = sum(len(part) for kind in (population.train, population.test, population.adapt) for part in kind)
    return sum(t.numel() * t.element_size() for t in held) + 16 * rows + DEVICE_BYTES * population.num_devices


def device_bytes(program: Program, message: Message, rows: Iterable[Indices]) -> int:
    """Gives what the op takes for one device beside others, the one with most rows, where torch does it.

    An upper bound that was measured (docs/performance.md): training keeps the weights, their start, slopes and
    velocity, and the activations of a batch with their slopes; a pass without training keeps two layers' outputs.
    """
    settings, (weights, activations) = message.settings, program.num_bytes
    most = max(map(len, rows), default=1)
    if message.op == Op.FIT and "x" in message.tree:
        most = len(message.tree["x"])
    inputs = 4 * int(np.prod(program.input_shape))
    if message.op not in (Op.FIT, Op.ADAPT, Op.BACKWARD):
        return 4 * weights + max(most, 1) * (5 * activations // 4 + 2 * inputs)
    cost = rules.cost(settings)
    batch = min(int(settings.get("batch", 0)) or most, most) if message.op == Op.FIT else most
    kept = 3 * max(round(cost.passes), 1) if cost.tangents else 3
    return (9 + 2 * cost.copies) * weights + max(batch, 1) * (kept * activations + 3 * inputs)
