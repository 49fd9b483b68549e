"""FitNets: the first layers of a tiny model learn to give what those of a large one give, before its logits are copied.

Shape letters: B rows, C channels of the tiny model's features, K those of the large one's, F features in a row.

Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: hints for thin deep nets", ICLR 2015, section 2.2 and
algorithm 1: a layer of the teacher is the hint, one of the pupil is guided, and a regressor, thrown away afterwards,
stands between the two.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import hardware, rng, tree
from midhaul.errors import SliceError
from midhaul.models import slices, trace
from midhaul.program import Examples
from midhaul.server import Augment, Optimizer, Progress, predict, train
from midhaul.tree import Tree


def middle(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Gives the layer in the middle of those that a model can be cut behind, as the paper's section 3 places hints.

    Raises: SliceError for a model without such a layer.
    """
    points = slices.cut_points(module, input_shape)
    if not points:
        raise SliceError(
            f"{type(module).__name__} has no layer whose output alone goes on, so none can be a hint or be guided; "
            "set scheme.distill = 'logits'"
        )
    return points[(len(points) - 1) // 2].name


def learn(
    tiny: nn.Module,
    whole: Tree,
    large: nn.Module,
    teacher: Tree,
    public: Examples,
    *,
    guided: str,
    hint: str,
    lr: float,
    epochs: int,
    batch: int,
    key: rng.Key,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Tree, float]:
    """Trains the tiny model up to its layer `guided` to give, through a regressor, the large one's output of `hint`.

    Gives the tiny model's whole tree with the guided layers renewed, and the last epoch's mean squared error. A model
    whose layers are named "" is guided in its middle.
    Raises: SliceError for a layer that isn't there or can't be cut behind.
    """
    shape = tuple(public.x.shape[1:])
    front, _ = slices.cut(tiny, guided or middle(tiny, shape), shape)
    source, _ = slices.cut(large, hint or middle(large, shape), shape)
    given, wanted = _shape(front, shape), _shape(source, shape)
    with rng.torch_seed(key._replace(use=int(rng.Use.INIT)).at(5)):
        joint = nn.Sequential(OrderedDict(front=front, regressor=regressor(given, wanted), flatten=nn.Flatten()))
    start = {**tree.of(joint), **{f"front.{name}": whole[name] for name in tree.of(front)}}
    target = partial(_hint, source, hardware.now().put_tree(tree.select(teacher, tree.of(source))), given)
    soft = target if augment is not None else target(public.x)
    end, _, loss = train(
        joint,
        start,
        public.x,
        public.y,
        Optimizer("adam", lr),
        epochs=epochs,
        batch=batch,
        key=key,
        soft=soft,
        soft_weight=1.0,
        loss="mse",
        augment=augment,
        progress=progress,
        label="the tiny model's first layers follow hints",
    )
    return {**whole, **{name: end[f"front.{name}"] for name in tree.of(front)}}, loss


def regressor(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """Gives the regressor from the guided layer's features to the hint's.

    A convolution of size 1 where both lie along time or space (the hint is first brought to the guided layer's size),
    as in the paper's section 2.2 but without spatial extent; else a fully connected layer.
    Shapes: [B, C, ...] -> [B, K, ...], or [B, ...] -> [B, F].

    >>> regressor((8, 16), (32, 4)), regressor((8,), (32, 4))[1].out_features
    (Conv1d(8, 32, kernel_size=(1,), stride=(1,)), 128)
    """
    if len(given) == len(wanted) and len(given) in (2, 3):
        return (nn.Conv1d if len(given) == 2 else nn.Conv2d)(given[0], wanted[0], 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(given), math.prod(wanted)))


def _hint(source: nn.Module, whole: Tree, given: tuple[int, ...], x: Tensor) -> Tensor:
    """Gives the large model's features, flat, at the size of the guided layer's where both lie along time or space."""
    h = predict(source, whole, x)
    if len(given) + 1 == h.dim() and len(given) == 2:
        h = F.adaptive_avg_pool1d(h, given[1:])
    elif len(given) + 1 == h.dim() and len(given) == 3:
        h = F.adaptive_avg_pool2d(h, given[1:])
    return h.flatten(1)


def _shape(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    with torch.no_grad(), trace.at_rest(module):
        return tuple(module(trace.example(module, input_shape, 1)).shape[1:])
