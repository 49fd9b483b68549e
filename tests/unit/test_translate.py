"""A net computes what its module computes, and what can't be translated is refused by its name."""

import math
from typing import Any

import net_runner
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from midhaul import net, rng, tree
from midhaul.errors import ModelError
from midhaul.models import adapters, slices, tiny
from midhaul.models.norm import FedBatchNorm
from midhaul.models.prepare import prepare
from midhaul.models.translate import translate
from midhaul.net import Kind, Net

TINY: list[tuple[str, tuple[int, ...], int, dict[str, Any]]] = [
    ("linear", (1, 8, 8), 10, {}),
    ("mlp", (1, 8, 8), 10, {}),
    ("cnn", (1, 12, 12), 10, {}),
    ("cnn1d", (6, 64), 6, {}),
    ("cnn1d", (6, 64), 6, {"norm": "group"}),
    ("dscnn", (1, 49, 10), 12, {"channels": 16}),
    ("mobilenet_v1_025", (3, 32, 32), 2, {}),
    ("resnet8", (3, 16, 16), 10, {}),
    ("autoencoder", (64,), 64, {}),
]


def drawn(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Gives a module whose parameters and statistics are no longer those of a new one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        module.train()
        module(torch.randn((8, *input_shape), generator=generator))
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
            assert value.isfinite().all(), name
    return module.eval()


def check(module: nn.Module, input_shape: tuple[int, ...], found: Net | None = None) -> Net:
    """Asserts that a net gives what its module gives on drawn rows."""
    found = found or translate(module, input_shape)
    x = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = module(x.clone()).flatten(1).numpy()
    got = np.stack([net_runner.run(found, row.numpy()).reshape(-1) for row in x])
    assert np.abs(wanted).max() > 0
    assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    return found


@pytest.mark.parametrize(("name", "shape", "classes", "options"), TINY, ids=lambda v: v if isinstance(v, str) else "")
def test_each_tiny_model(name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> None:
    with rng.torch_seed(rng.key(1, 0, 0, rng.Use.INIT)):
        module = drawn(tiny.build(name, shape, classes, **options), shape)
    found = check(module, shape)
    own = dict(module.named_parameters())
    assert found.values[0].elements == math.prod(shape)
    assert all(found.tensors[tensor].shape == own[tensor].shape for tensor in found.tensors)
    assert not any(layer.kind == Kind.RESHAPE for layer in found.layers)
    check(prepare(module, shape, "group").module.eval(), shape)


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, 7], ids=lambda place: TINY[place][0])
def test_adapters(place: int) -> None:
    name, shape, classes, options = TINY[place]
    module = adapters.add_lora(
        drawn(tiny.build(name, shape, classes, **options), shape), 2, 4.0, "all", rng.key(1, 0, 0, rng.Use.INIT)
    )
    module = drawn(module, shape)
    found = check(module, shape)
    lora = [layer for layer in found.layers if "lora_a" in layer.weights]
    assert len(lora) == sum(isinstance(m, adapters.LoRALinear | adapters.LoRAConv1x1) for m in module.modules())
    assert all(layer.lora_scale == 2.0 for layer in lora)


def test_halves_of_a_cut_and_the_tensors_of_a_tree() -> None:
    module = drawn(tiny.build("resnet8", (3, 16, 16), 10), (3, 16, 16))
    front, rear = (part.eval() for part in slices.cut(module, "block1.relu", (3, 16, 16)))
    assert [layer.name for layer in check(front, (3, 16, 16)).layers][-1] == "add"
    assert check(rear, (16, 16, 16)).layers[0].name == "block2.conv1"
    zeros = {name: value * 0 for name, value in tree.of(rear).items() if name.startswith("head.")}
    assert not net_runner.run(translate(rear, (16, 16, 16), zeros), np.ones((16, 16, 16))).any()
    with pytest.raises(ModelError, match=r"no tensor 'head\.wait'"):
        translate(rear, (16, 16, 16), {"head.wait": torch.zeros(1)})


class Functional(nn.Module):
    """Everything that is called rather than held as a layer, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"conv": nn.Conv1d(3, 8, 3, padding="same", dilation=2)})
        self.norm = nn.GroupNorm(2, 8)
        self.again = nn.Conv1d(8, 8, 4, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block["conv"](x)
        F.relu_(x)
        y = F.hardtanh(self.norm(x), -0.5, 2.0)
        y += x
        y = F.relu6(self.again(F.pad(y, (1, 2))))
        y = F.dropout(y, 0.5, self.training).contiguous()
        y = F.max_pool1d(y, 2, 2, 1)
        return self.head(y.mean(-1).reshape(y.size(0), -1))  # type: ignore[no-any-return]


def test_calls_of_functions() -> None:
    found = check(drawn(Functional(), (3, 20)), (3, 20))
    assert [(layer.name, layer.kind, layer.low, layer.high) for layer in found.layers] == [
        ("block.conv", Kind.CONV, 0.0, math.inf),
        ("norm", Kind.GROUP_NORM, -math.inf, math.inf),
        ("hardtanh", Kind.CLAMP, -0.5, 2.0),
        ("add", Kind.ADD, -math.inf, math.inf),
        ("again", Kind.CONV, 0.0, 6.0),
        ("max_pool1d", Kind.MAX_POOL, -math.inf, math.inf),
        ("mean", Kind.AVERAGE_POOL, -math.inf, math.inf),
        ("head", Kind.DENSE, -math.inf, math.inf),
    ]
    conv, again = found.layers[0], found.layers[4]
    assert (conv.kernel, conv.dilation, conv.padding) == ((1, 3), (1, 2), (0, 2, 0, 2))
    assert again.padding == (0, 1, 0, 2)
    assert found.values[0].shape == (3, 1, 20)
    assert net.macs(found, found.layers[-1]) == 40


EXACT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "norm first": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), (3, 6, 6)),
    "norm behind a pool": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2), nn.BatchNorm1d(4), nn.ReLU()), (2, 12)),
    "norm without weights": (nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False)), (6,)),
    "fedbn": (nn.Sequential(nn.Conv1d(2, 4, 3), FedBatchNorm(4), nn.ReLU()), (2, 12)),
    "depthwise of more": (nn.Sequential(nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), groups=3)), (3, 7, 5)),
    "pool over the edge": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, ceil_mode=True)), (1, 6, 8)),
    "average over the edge": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2, ceil_mode=True)), (1, 6, 8)),
    "average inside": (nn.Sequential(nn.Conv1d(1, 2, 2), nn.AvgPool1d(3, 2, 1, count_include_pad=False)), (1, 9)),
    "adaptive": (nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten()), (1, 6, 5)),
    "adaptive maximum": (nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()), (1, 6, 5)),
    "zeros before a maximum": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.ZeroPad1d(1), nn.MaxPool1d(3)), (2, 9)),
    "instance norm": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True)), (2, 9)),
    "signal as an image": (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv2d(1, 4, (3, 2)), nn.Flatten()), (3, 9)),
    "flattened before ReLU": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(28, 3)), (2, 9)),
    "clamp of one side": (nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(-0.1, 0.2), nn.ReLU6()), (4,)),
    "ReLU of the input in place": (nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(2, 4, 3)), (2, 9)),
    "zeros before ReLU": (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(1, 2, 3)), (1, 5, 4)),
    "zeros before a shifted clamp": (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Hardtanh(0.1, 1.0)), (1, 5, 4)),
    "zeros before any maximum": (nn.Sequential(nn.ZeroPad1d((2, 0)), nn.MaxPool1d(3, 1)), (2, 5)),
    "zeros before norm": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.ZeroPad1d(2), nn.BatchNorm1d(3), nn.ReLU()), (2, 5)),
    "zeros at the end": (nn.Sequential(nn.Conv2d(2, 3, 2), nn.ZeroPad2d((1, 0, 0, 2))), (2, 5, 4)),
    "average with padding": (nn.Sequential(nn.Conv2d(2, 3, 2), nn.AvgPool2d(3, 2, 1, ceil_mode=True)), (2, 7, 6)),
    "average of a padded signal": (nn.Sequential(nn.ZeroPad1d(1), nn.AvgPool1d(2, 2, 1)), (2, 7)),
    "cut behind flatten": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten()), (2, 9)),
}


@pytest.mark.parametrize("case", EXACT)
def test_what_is_kept_exact(case: str) -> None:
    module, shape = EXACT[case]
    check(drawn(module, shape), shape)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Draws convolutions, pools, norms, pads and clamps one behind the other, of signals or of images."""
    axes, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    shape = (channels, *(draw(st.integers(6, 10)) for _ in range(axes)))
    kinds: Any = [nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d, nn.BatchNorm1d, nn.ZeroPad1d]
    if axes == 2:
        kinds = [nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d, nn.ZeroPad2d]
    conv, most, mean, norm, pad = kinds
    layers: list[nn.Module] = [nn.Identity()]
    for what in draw(
        st.lists(st.sampled_from(["conv", "depth", "max", "mean", "norm", "group", "pad", "clamp"]), max_size=5)
    ):
        kernel, stride, zeros = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
        flag = draw(st.booleans())
        if what == "conv":
            layers.append(conv(channels, 4, kernel, stride, zeros, draw(st.integers(1, 2)), bias=flag))
            channels = 4
        elif what == "depth":
            layers.append(conv(channels, channels * stride, kernel, 1, zeros, groups=channels))
            channels *= stride
        elif what == "max":
            layers.append(most(kernel, stride, min(zeros, kernel // 2), ceil_mode=flag))
        elif what == "mean":
            layers.append(mean(kernel, stride, min(zeros, kernel // 2), flag))
        elif what == "norm":
            layers.append(norm(channels, affine=flag))
        elif what == "group":
            layers.append(nn.GroupNorm(channels if flag else 1, channels, 0.5))
        elif what == "pad":
            layers.append(pad((zeros, kernel) * axes))
        else:
            layers.append(nn.ReLU(inplace=flag) if stride == 1 else nn.Hardtanh(-0.3, 0.5))
    layers += [nn.Flatten(), nn.LazyLinear(3)]
    return nn.Sequential(*layers), shape


@settings(max_examples=30, deadline=None, derandomize=True)
@given(stacks())
def test_drawn_stacks(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = case
    try:
        with torch.no_grad():
            module.eval()(torch.zeros((2, *shape)))
    except RuntimeError:  # the map has shrunk to nothing
        assume(False)
    check(drawn(module, shape), shape)


def test_one_layer_used_twice_is_not_folded_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.relu = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(self.norm(self.fc(x))))  # type: ignore[no-any-return]

    found = check(drawn(Twice(), (6,)), (6,))
    assert [layer.name for layer in found.layers] == ["fc", "norm", "fc_2"]
    assert found.layers[0].weights == found.layers[2].weights


def test_a_module_that_changed_is_read_anew() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert check(module, (4,)).layers[0].high == math.inf
    module[1] = nn.ReLU6()
    with torch.no_grad():
        module[0].weight *= 30.0
    assert check(module, (4,)).layers[0].high == 6.0


def test_up_to_a_layer() -> None:
    module = drawn(tiny.build("resnet8", (3, 16, 16), 10), (3, 16, 16))
    front, _ = slices.cut(module, "block2.relu", (3, 16, 16))
    check(front.eval(), (3, 16, 16), translate(module, (3, 16, 16), upto="block2.relu"))
    check(front.eval(), (3, 16, 16), translate(module, (3, 16, 16), upto="block2"))
    with pytest.raises(ModelError, match="computes nothing in a layer 'block9'"):
        translate(module, (3, 16, 16), upto="block9")


def test_a_batch_norm_that_is_trained_is_refused() -> None:
    module = drawn(tiny.build("dscnn", (1, 49, 10), 12, channels=8), (1, 49, 10))
    for keywords in ({"fold": False}, {"trained": ("conv_norm.weight",)}, {"trained": ("conv.bias",)}):
        with pytest.raises(ModelError, match=r"'conv_norm' \(.*norm = group"):
            translate(module, (1, 49, 10), **keywords)  # type: ignore[arg-type]
    assert translate(module, (1, 49, 10), trained=("head.weight",)).layers


class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 4, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "elu": (tiny.build("eegnet", (8, 64), 2), (8, 64), r"'spatial_elu' \(ELU.*use ReLU"),
    "gelu": (nn.Sequential(nn.Linear(3, 3), nn.GELU()), (3,), r"'1' \(GELU.*use ReLU"),
    "sigmoid": (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), (3,), r"'1' \(Sigmoid.*leave it to the loss"),
    "tanh": (Calls(torch.tanh), (2, 5, 5), r"'tanh' \(call of tanh.*use ReLU"),
    "softmax": (nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1)), (3,), r"'1' \(Softmax.*leave it to the loss"),
    "lstm": (nn.Sequential(nn.LSTM(3, 4)), (5, 3), r"'0' \(LSTM.*convolutions along time"),
    "gru": (nn.ModuleDict({"cell": nn.GRU(3, 4)}), (5, 3), r"'cell' \(GRU.*convolutions along time"),
    "embedding": (tiny.build("embed", (5,), 2, vocabulary=9), (5,), r"'embed\.table' \(Embedding.*numbers"),
    "attention": (nn.TransformerEncoderLayer(8, 2), (3, 8), "TransformerEncoderLayer.*the server's half"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(1, 2, 3)), (1, 5, 5), r"'0' \(ConvTranspose2d"),
    "groups": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), (4, 5, 5), r"'0' \(Conv2d in groups.*groups = 1"),
    "layer norm": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.LayerNorm(4)), (1, 5, 5), r"'1' \(LayerNorm.*GroupNorm"),
    "linear of positions": (nn.Sequential(nn.Linear(4, 2)), (5, 4), r"'0' \(Linear.*flatten before it"),
    "uneven adaptive": (nn.Sequential(nn.AdaptiveAvgPool2d(2)), (1, 5, 4), r"'0' \(AdaptiveAvgPool2d.*divides"),
    "divisor": (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), (1, 5, 4), r"'0' \(AvgPool2d.*divisor_override"),
    "reflected": (nn.Sequential(nn.ReflectionPad2d(1)), (1, 5, 4), r"'0' \(ReflectionPad2d.*pad with zeros"),
    "circular": (nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")), (1, 5), r"'0' \(Conv1d"),
    "ones": (Calls(lambda x: F.pad(x, (1, 1), value=1.0)), (2, 5, 5), r"'pad' \(call of pad.*zeros"),
    "scaled": (Calls(lambda x: x * 2), (2, 5, 5), r"'mul' \(call of mul.*weights"),
    "offset": (Calls(lambda x: x + 1), (2, 5, 5), r"'add' \(call of add with a constant"),
    "broadcast": (Calls(lambda x: x + x.mean((2, 3), keepdim=True)), (2, 5, 5), "'add'.*one shape"),
    "joined": (Calls(lambda x: torch.cat([x, x], 1)), (2, 5, 5), r"'cat' \(call of cat.*add branches"),
    "turned": (Calls(lambda x: x.transpose(1, 2)), (2, 5, 6), r"'transpose' \(call.*order of the axes"),
    "mean of channels": (Calls(lambda x: x.mean(1)), (2, 5, 5), r"'mean' \(call of mean.*not over channels"),
    "mean of rows": (Calls(lambda x: x.mean(0)), (2, 5, 5), "'mean'.*a row for each example"),
    "rows mixed": (Calls(lambda x: x.flatten(0, 1)), (2, 5, 5), "call of (view|flatten).*a row for each example"),
    "long pool": (nn.Sequential(nn.AdaptiveAvgPool1d(1)), (1, 300), r"'0' \(AdaptiveAvgPool1d.*at most 255"),
    "branch": (Calls(lambda x: x if x.sum() > 0 else -x), (2, 5, 5), "can't be exported"),
    "nothing": (nn.Sequential(nn.Identity()), (4,), "no layers for a device to run"),
    "two outputs": (Calls(lambda x: (x, x)), (2, 5, 5), "gives 2 outputs"),
    "computed weight": (Calls(lambda x: F.linear(x.mean((2, 3)), x.mean((2, 3)))), (2, 5, 5), "'linear'.*a parameter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_device_cannot_run_is_refused_by_name(case: str) -> None:
    module, shape, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        translate(module.eval(), shape)
    assert "\n" not in str(caught.value)
