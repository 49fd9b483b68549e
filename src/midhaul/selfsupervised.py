"""The large model's start where nobody on the server knows a label: contrastive learning on public rows.

Two changed views of a row must be told from all other rows of the batch (SimCLR). Views of a vector or of tokens have
some of their places filled from other rows (SCARF); views of a signal or a map have a block wiped out, are scaled and
jittered, and turned as `large.rotate_deg` has it.

Source: Chen, Kornblith, Norouzi and Hinton, "A simple framework for contrastive learning of visual representations",
ICML 2020, section 2 and equation 1; Bahri, Jiang, Tay and Metzler, "SCARF", ICLR 2022, algorithm 1; Tang et al.,
"Exploring contrastive learning in human activity recognition for healthcare", 2020 (SimCLR on such signals).

Shape letters: B rows of a batch, N rows, E embedding.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import hardware, rng, tree
from midhaul.errors import ConfigError
from midhaul.models import slices, trace
from midhaul.server import Augment, Optimizer, Progress, call, parameter_names
from midhaul.tree import Tree

TEMPERATURE = 0.1
PROJECTION = 64
CORRUPTED = 0.4  # share of a vector's places that are filled from other rows
WIPED = 0.25  # share of a signal, along each of its axes, that is wiped out
SCALED, JITTERED = 0.2, 0.1  # deviations of a channel's factor and of a sample's noise, in units of the data's own


def head_names(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Gives the names of the parameters of a model's last layer. Raises: SliceError if it has none."""
    return slices.names(module, "head", input_shape)


def contrast(
    module: nn.Module,
    input_shape: tuple[int, ...],
    x: Tensor,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch: int,
    key: rng.Key,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> Tree:
    """Gives the parameters and buffers of all before a model's head, after learning to tell rows apart.

    Raises: ConfigError for a model whose head can't be told from its body.
    """
    body = _body(module, input_shape)
    with torch.no_grad():
        body.eval()
        width = body(trace.example(module, input_shape)).flatten(1).shape[1]
    with rng.torch_seed(key.at(1)):
        projection = nn.Sequential(nn.Flatten(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))
    whole = nn.Sequential(OrderedDict(body=body, projection=projection))
    here = hardware.now()
    parameters = here.put_tree(tree.of(whole))
    memory = optimizer.init(tree.select(parameters, parameter_names(whole)))
    steps = max(len(x) // batch, 1)  # a short last batch would have few rows to be told from
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(key.at(2 + epoch), len(x)))
        with rng.torch_seed(key._replace(use=int(rng.Use.DROPOUT)).at(2 + epoch)), hardware.drawing():
            for step in range(steps):
                rows = x[order[step * batch : (step + 1) * batch]]
                noise = key._replace(use=int(rng.Use.NOISE))
                views = [
                    view(rows if augment is None else augment(rows, noise.at(2 * (epoch * steps + step) + n)))
                    for n in (0, 1)
                ]
                leaves = {name: parameters[name].detach().requires_grad_(True) for name in parameter_names(whole)}
                z, buffers = call(whole, {**parameters, **leaves}, here.put(torch.cat(views)), training=True)
                slopes = torch.autograd.grad(told_apart(z), list(leaves.values()))
                share = (epoch + step / steps) / epochs
                rate = optimizer.lr * 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * share))))
                weights = {name: leaf.detach() for name, leaf in leaves.items()}
                weights, memory = optimizer.step(weights, dict(zip(leaves, slopes, strict=True)), memory, rate)
                parameters = {**parameters, **buffers, **weights}
        if progress is not None:
            progress("the large model learns without labels", epoch + 1, epochs)
    return hardware.to_host({name[5:]: value for name, value in parameters.items() if name.startswith("body.")})


def told_apart(z: Tensor) -> Tensor:
    """Gives the mean loss of naming each row's other view among all others (NT-Xent). Shapes: [2B, E] -> [].

    >>> round(float(told_apart(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))), 4)
    0.0001
    """
    num = len(z) // 2
    unit = F.normalize(z, dim=1)
    likeness = (unit @ unit.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    other = torch.cat([torch.arange(num, 2 * num), torch.arange(num)]).to(z.device)
    return F.cross_entropy(likeness, other)


def view(x: Tensor) -> Tensor:
    """Gives changed rows, by torch's own generator: call it inside `rng.torch_seed`. Shapes: [B, ...] -> [B, ...]."""
    num = len(x)
    if x.dim() == 2:
        return torch.where(torch.rand(x.shape) < CORRUPTED, x[torch.randint(num, x.shape), torch.arange(x.shape[1])], x)
    wiped = torch.ones((num, *x.shape[2:]), dtype=torch.bool)
    for axis, length in enumerate(x.shape[2:], 1):
        block = max(1, round(WIPED * length))
        first = torch.randint(length - block + 1, (num, *[1] * (x.dim() - 2)))
        place = torch.arange(length).reshape([-1 if a == axis else 1 for a in range(x.dim() - 1)])
        wiped &= (place >= first) & (place < first + block)
    scale = 1.0 + SCALED * torch.randn((num, x.shape[1], *[1] * (x.dim() - 2)))
    return (x * scale + JITTERED * torch.randn(x.shape)) * ~wiped[:, None]


def _body(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    head = set(head_names(module, input_shape))
    for point in reversed(slices.cut_points(module, input_shape)):
        front, rear = slices.cut(module, point.name, input_shape)
        if {name for name, _ in rear.named_parameters()} == head:
            return front
    raise ConfigError(
        f"{type(module).__name__} can't be cut before its head, so it can't begin self-supervised; "
        "set scheme.large_start = 'drawn', or choose another large model"
    )
