"""An int8 net as a .tflite file, for TensorFlow Lite for Microcontrollers and its tools.

The file is a FlatBuffer of the schema of TensorFlow Lite, version 3; the numbers of its fields, operators and types are
below. Weights are int8 with a scale for each output channel, biases int32, values int8 in the order NHWC with N = 1.

Source: tensorflow/lite/schema/schema.fbs; "TensorFlow Lite 8-bit quantization specification".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt

from midhaul.errors import ModelError
from midhaul.net import Kind, Layer, Net, Quantised, Value

VERSION = 3
_ALIGN_BYTES = 16


class _Type(IntEnum):
    INT32 = 2
    INT8 = 9


class _Op(IntEnum):
    ADD = 0
    AVERAGE_POOL_2D = 1
    CONV_2D = 3
    DEPTHWISE_CONV_2D = 4
    FULLY_CONNECTED = 9
    MAX_POOL_2D = 17
    RESHAPE = 22
    PAD = 34
    PADV2 = 60


_OPTIONS = {  # the number of an operator's options in the union BuiltinOptions, and how many fields they have
    _Op.ADD: (11, 2),
    _Op.AVERAGE_POOL_2D: (5, 6),
    _Op.CONV_2D: (1, 7),
    _Op.DEPTHWISE_CONV_2D: (2, 7),
    _Op.FULLY_CONNECTED: (8, 6),
    _Op.MAX_POOL_2D: (5, 6),
    _Op.RESHAPE: (17, 1),
    _Op.PAD: (22, 0),
    _Op.PADV2: (43, 0),
}
_VERSIONS = {  # of operators that take int8
    _Op.ADD: 2,
    _Op.AVERAGE_POOL_2D: 2,
    _Op.CONV_2D: 3,
    _Op.DEPTHWISE_CONV_2D: 3,
    _Op.FULLY_CONNECTED: 4,
    _Op.MAX_POOL_2D: 2,
    _Op.RESHAPE: 1,
    _Op.PAD: 2,
    _Op.PADV2: 2,
}
_SAME, _VALID = 0, 1
_CLAMPS = ((0, -math.inf, math.inf), (1, 0.0, math.inf), (3, 0.0, 6.0), (2, -1.0, 1.0))  # activation, low, high


def to_bytes(net: Net, name: str = "midhaul") -> bytes:
    """Gives the file of a net that is int8 throughout but for QUANTISE at its start and DEQUANTISE at its end.

    Input and output are int8, with scale and zero point in the file. What int8 layers read and none makes is an input.
    Raises: ModelError for a layer that isn't int8, or whose clamp or padding TensorFlow Lite doesn't have.
    """
    return _File(net, name).done()


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: `scales` and `zeros` along the axis `dimension`; data if it is constant."""

    name: str
    shape: tuple[int, ...]
    type: _Type
    data: bytes = b""
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    dimension: int = 0


@dataclass(frozen=True)
class _Operator:
    """An operator; `options` are its fields as (slot, size in bytes, number, default)."""

    op: _Op
    inputs: tuple[int, ...]
    output: int
    options: tuple[tuple[int, int, int, int], ...] = ()


@dataclass
class _File:
    net: Net
    name: str
    tensors: list[_Tensor] = field(default_factory=list)
    operators: list[_Operator] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=dict)  # the tensor of a value

    def done(self) -> bytes:
        values = self.net.values
        inner = [one for one in self.net.layers if values[one.out].int8 and one.kind != Kind.QUANTISE]
        outer = (Kind.QUANTISE, Kind.DEQUANTISE, Kind.RESHAPE)
        for layer in self.net.layers:
            if layer.kind not in (self._writers() if layer in inner else outer):
                raise ModelError(
                    f"the layer {layer.name!r} ({layer.kind.name}) is not int8, so there is no .tflite of this model; "
                    "quantise all of its layers, or use model.mhb"
                )
        if not inner:
            raise ModelError("there is no int8 layer to write into a .tflite; quantise the network first")
        made = {layer.out for layer in inner}
        firsts = list(dict.fromkeys(value for layer in inner for value in layer.inputs if value not in made))
        for place, first in enumerate(firsts):
            name, shape = f"input{place or ''}", values[first].shape
            self.at[first] = self._value(name, values[first], self._shape(values[first], shape[1:] == (1, 1)))
        for layer in inner:
            self._writers()[layer.kind](layer)
        return self._serialised([self.at[first] for first in firsts], self.at[inner[-1].out])

    def _writers(self) -> dict[Kind, Callable[[Layer], None]]:
        return {
            Kind.DENSE: self._dense,
            Kind.CONV: self._conv,
            Kind.DEPTHWISE: self._conv,
            Kind.MAX_POOL: self._pool,
            Kind.AVERAGE_POOL: self._pool,
            Kind.ADD: self._add,
        }

    # Layers.

    def _dense(self, layer: Layer) -> None:
        packed = _numbers(layer)
        source = self.net.values[layer.inputs[0]]
        weight = _weight(layer).reshape(len(_weight(layer)), -1)
        flat = self.at[layer.inputs[0]]
        if len(self.tensors[flat].shape) != 2:
            shape = np.array([1, source.elements], np.int32)
            given = self._const(f"{layer.name}/shape", shape)
            flat, before = self._value(f"{layer.name}/flat", source, (1, source.elements)), flat
            self._operator(_Op.RESHAPE, (before, given), flat)
        out = self.net.values[layer.out]
        inputs = (flat, *self._weights(layer, weight, 0))
        self.at[layer.out] = self._value(layer.name, out, (1, out.shape[0]))
        self._operator(_Op.FULLY_CONNECTED, inputs, self.at[layer.out], (0, 1, _activation(layer, packed, out), 0))

    def _conv(self, layer: Layer) -> None:
        source, out = self.net.values[layer.inputs[0]], self.net.values[layer.out]
        same, data = self._padded(layer, source.zero_point)
        kernel = _weight(layer).reshape(out.shape[0], -1, *layer.kernel)
        activation = _activation(layer, _numbers(layer), out)
        strides = ((1, 4, layer.stride[1], 0), (2, 4, layer.stride[0], 0))
        options: tuple[tuple[int, int, int, int], ...]
        if layer.kind == Kind.CONV:
            inputs = (data, *self._weights(layer, kernel.transpose(0, 2, 3, 1), 0))
            options = (*strides, (3, 1, activation, 0), (4, 4, layer.dilation[1], 1), (5, 4, layer.dilation[0], 1))
            op = _Op.CONV_2D
        else:
            inputs = (data, *self._weights(layer, kernel.transpose(1, 2, 3, 0), 3))
            times = out.shape[0] // source.shape[0]
            spread = ((5, 4, layer.dilation[1], 1), (6, 4, layer.dilation[0], 1))
            options = (*strides, (3, 4, times, 0), (4, 1, activation, 0), *spread)
            op = _Op.DEPTHWISE_CONV_2D
        self.at[layer.out] = self._value(layer.name, out, self._shape(out))
        self._operator(op, inputs, self.at[layer.out], (0, 1, same, 0), *options)

    def _pool(self, layer: Layer) -> None:
        out = self.net.values[layer.out]
        if layer.dilation != (1, 1):
            raise ModelError(f"the layer {layer.name!r} is a pool with dilation, which TensorFlow Lite doesn't have")
        low, high = (-128, 127) if layer.packed is None else (layer.packed.low, layer.packed.high)
        activation = 0 if (low, high) == (-128, 127) else _activation(layer, _numbers(layer), out)
        same, data = self._padded(layer, -128 if layer.kind == Kind.MAX_POOL else None)
        self.at[layer.out] = self._value(layer.name, out, self._shape(out))
        self._operator(
            _Op.MAX_POOL_2D if layer.kind == Kind.MAX_POOL else _Op.AVERAGE_POOL_2D,
            (data,),
            self.at[layer.out],
            (0, 1, same, 0),
            *((1, 4, layer.stride[1], 0), (2, 4, layer.stride[0], 0)),
            *((3, 4, layer.kernel[1], 0), (4, 4, layer.kernel[0], 0), (5, 1, activation, 0)),
        )

    def _add(self, layer: Layer) -> None:
        out = self.net.values[layer.out]
        inputs = tuple(self.at[value] for value in layer.inputs)
        shapes = {self.tensors[tensor].shape for tensor in inputs}
        if len(shapes) != 1:
            raise ModelError(f"the layer {layer.name!r} adds a vector to a map; flatten both, or neither")
        self.at[layer.out] = self._value(layer.name, out, shapes.pop())
        self._operator(_Op.ADD, inputs, self.at[layer.out], (0, 1, _activation(layer, _numbers(layer), out), 0))

    def _padded(self, layer: Layer, fill: int | None) -> tuple[int, int]:
        """Gives the kind of padding and the tensor to read: padded beforehand where it is neither SAME nor VALID."""
        place = layer.inputs[0]
        source, out, data = self.net.values[place], self.net.values[layer.out], self.at[place]
        top, left, bottom, right = layer.padding
        if not any(layer.padding):
            return _VALID, self._map(layer, data, source)
        same = []
        for axis, (before, after) in enumerate(((top, bottom), (left, right))):
            size, step = source.shape[axis + 1], layer.stride[axis]
            num = -(-size // step)
            span = (layer.kernel[axis] - 1) * layer.dilation[axis] + 1
            total = max((num - 1) * step + span - size, 0)
            reached = (out.shape[axis + 1] - 1) * step + span - size - before
            same.append(num == out.shape[axis + 1] and total // 2 == before and reached <= after)
        data = self._map(layer, data, source)
        if all(same):
            return _SAME, data
        if fill is None:
            raise ModelError(f"the layer {layer.name!r} is an average pool with padding; TensorFlow Lite needs it gone")
        sides = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        inputs = [data, self._const(f"{layer.name}/pads", sides)]
        height, width = source.shape[1] + top + bottom, source.shape[2] + left + right
        padded = self._value(f"{layer.name}/padded", source, (1, height, width, source.shape[0]))
        op = _Op.PAD
        if fill != source.zero_point:
            op, scale = _Op.PADV2, (float(source.scale),)
            number = _Tensor(f"{layer.name}/fill", (1,), _Type.INT8, bytes([fill & 0xFF]), scale, (source.zero_point,))
            inputs.append(self._tensor(number))
        self._operator(op, tuple(inputs), padded)
        return _VALID, padded

    def _map(self, layer: Layer, data: int, value: Value) -> int:
        """Gives the tensor of a map, also of what was made as a vector."""
        if len(self.tensors[data].shape) == 4:
            return data
        shape = self._shape(value)
        wide = self._value(f"{layer.name}/map", value, shape)
        self._operator(_Op.RESHAPE, (data, self._const(f"{layer.name}/shape", np.array(shape, np.int32))), wide)
        return wide

    def _weights(self, layer: Layer, weight: npt.NDArray[np.int8], dimension: int) -> tuple[int, int]:
        """Adds the weights and the bias, whose scales are the input's times the weights'."""
        packed = _numbers(layer)
        source, out = self.net.values[layer.inputs[0]], self.net.values[layer.out]
        real = packed.multiplier.astype(np.float64) * 2.0 ** (packed.shift.astype(np.float64) - 32.0)
        scales = real * out.scale / source.scale
        own = _weight(layer).reshape(len(scales), -1).astype(np.int64).sum(1)
        bias = np.zeros(len(scales), np.int64) if packed.bias is None else packed.bias.astype(np.int64)
        unfolded = (bias + source.zero_point * own).astype(np.int32)
        zeros = (0,) * len(scales)
        shape = tuple(int(size) for size in weight.shape)
        data = np.ascontiguousarray(weight, np.int8).tobytes()
        kernel = _Tensor(f"{layer.name}/weight", shape, _Type.INT8, data, tuple(scales), zeros, dimension)
        steps = tuple(scales * source.scale)
        offset = _Tensor(
            f"{layer.name}/bias", (len(scales),), _Type.INT32, unfolded.astype("<i4").tobytes(), steps, zeros
        )
        return self._tensor(kernel), self._tensor(offset)

    # Tensors and operators.

    @staticmethod
    def _shape(value: Value, flat: bool = False) -> tuple[int, ...]:
        channels, height, width = value.shape
        return (1, channels) if flat else (1, height, width, channels)

    def _value(self, name: str, value: Value, shape: tuple[int, ...]) -> int:
        return self._tensor(_Tensor(name, shape, _Type.INT8, b"", (float(value.scale),), (value.zero_point,)))

    def _const(self, name: str, numbers: npt.NDArray[np.int32]) -> int:
        return self._tensor(_Tensor(name, numbers.shape, _Type.INT32, numbers.astype("<i4").tobytes()))

    def _tensor(self, tensor: _Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _operator(self, op: _Op, inputs: tuple[int, ...], output: int, *options: tuple[int, int, int, int]) -> None:
        self.operators.append(_Operator(op, inputs, output, options))

    # The file.

    def _serialised(self, firsts: list[int], last: int) -> bytes:
        builder = flatbuffers.Builder(1 << 16)
        kinds = list(dict.fromkeys(operator.op for operator in self.operators))
        buffers = [_table(builder, 3, ())]  # buffer 0 is the empty one
        tensors = []
        for tensor in self.tensors:
            number = 0
            if tensor.data:
                number = len(buffers)
                buffers.append(_table(builder, 3, ((0, "offset", _bytes(builder, tensor.data)),)))
            tensors.append(_write_tensor(builder, tensor, number))
        operators = [_write_operator(builder, operator, kinds.index(operator.op)) for operator in self.operators]
        graph = _table(
            builder,
            6,
            (
                (0, "offset", _offsets(builder, tensors)),
                (1, "offset", _numbers_of(builder, firsts, "i4")),
                (2, "offset", _numbers_of(builder, (last,), "i4")),
                (3, "offset", _offsets(builder, operators)),
                (4, "offset", builder.CreateString("main")),
            ),
        )
        codes = [
            _table(builder, 4, ((0, "int8", int(op)), (2, "int32", _VERSIONS[op]), (3, "int32", int(op))))
            for op in kinds
        ]
        model = _table(
            builder,
            10,
            (
                (0, "uint32", VERSION),
                (1, "offset", _offsets(builder, codes)),
                (2, "offset", _offsets(builder, [graph])),
                (3, "offset", builder.CreateString(self.name)),
                (4, "offset", _offsets(builder, buffers)),
            ),
        )
        builder.Finish(model, b"TFL3")
        return bytes(builder.Output())


def _numbers(layer: Layer) -> Quantised:
    if layer.packed is None:
        raise ModelError(f"the layer {layer.name!r} has no int8 numbers; quantise the network first")
    return layer.packed


def _weight(layer: Layer) -> npt.NDArray[np.int8]:
    weight = _numbers(layer).weight
    if weight is None:
        raise ModelError(f"the layer {layer.name!r} has no int8 weights; quantise the network again")
    return weight


def _activation(layer: Layer, packed: Quantised, out: Value) -> int:
    """Gives the number of the activation whose clamp, in stored numbers, is the layer's."""
    for number, low, high in _CLAMPS:
        if (packed.low, packed.high) == (_stored(low, out), _stored(high, out)):
            return number
    raise ModelError(
        f"the layer {layer.name!r} clamps to [{layer.low:g}, {layer.high:g}], which TensorFlow Lite doesn't have; "
        "use ReLU or ReLU6, or model.mhb"
    )


def _stored(real: float, value: Value) -> int:
    if math.isinf(real):
        return -128 if real < 0 else 127
    return max(-128, min(127, value.zero_point + round(real / value.scale)))


def _write_tensor(builder: Any, tensor: _Tensor, number: int) -> int:
    name = builder.CreateString(tensor.name)
    shape = _numbers_of(builder, tensor.shape, "i4")
    fields = [(0, "offset", shape), (1, "int8", int(tensor.type)), (2, "uint32", number), (3, "offset", name)]
    if tensor.scales:
        scales, zeros = _numbers_of(builder, tensor.scales, "f4"), _numbers_of(builder, tensor.zeros, "i8")
        about = _table(builder, 7, ((2, "offset", scales), (3, "offset", zeros), (6, "int32", tensor.dimension)))
        fields.append((4, "offset", about))
    return _table(builder, 11, fields)


def _write_operator(builder: Any, operator: _Operator, code: int) -> int:
    kind, num_fields = _OPTIONS[operator.op]
    builder.StartObject(num_fields)
    for slot, size, number, default in operator.options:
        (builder.PrependInt8Slot if size == 1 else builder.PrependInt32Slot)(slot, number, default)
    options = builder.EndObject()
    inputs, outputs = _numbers_of(builder, operator.inputs, "i4"), _numbers_of(builder, (operator.output,), "i4")
    fields = ((0, "uint32", code), (1, "offset", inputs), (2, "offset", outputs), (3, "uint8", kind))
    return _table(builder, 14, (*fields, (4, "offset", options)))


def _table(builder: Any, num_fields: int, fields: Sequence[tuple[int, str, int]]) -> int:
    put = {
        "int8": builder.PrependInt8Slot,
        "uint8": builder.PrependUint8Slot,
        "int32": builder.PrependInt32Slot,
        "uint32": builder.PrependUint32Slot,
        "offset": builder.PrependUOffsetTRelativeSlot,
    }
    builder.StartObject(num_fields)
    for slot, kind, value in fields:
        put[kind](slot, value, 0)
    return int(builder.EndObject())


def _offsets(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _numbers_of(builder: Any, numbers: Sequence[float], kind: str) -> int:
    return int(builder.CreateNumpyVector(np.asarray(numbers, f"<{kind}")))


def _bytes(builder: Any, data: bytes) -> int:
    """Writes a vector of bytes whose data begin at a multiple of 16, as the interpreter wants weights."""
    builder.StartVector(1, len(data), _ALIGN_BYTES)
    builder.head = builder.Head() - len(data)
    builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
    return int(builder.EndVector())
