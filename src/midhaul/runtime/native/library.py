"""The compiled library and its structures, as `c/kernel.h` and `c/frames.h` have them."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.devices import toolchain
from midhaul.errors import DependencyError, EngineError

SOURCES = Path(__file__).resolve().parent / "c"
SANITIZE = "MIDHAUL_SANITIZE_KERNELS"  # set to what -fsanitize takes, for a build that checks itself

CONV, DEPTHWISE, NORM, PLAIN, GROUP = range(5)
NO_ACT, RELU, RELU6 = range(3)
NO_POOL, MAX, MEAN = range(3)
CROSS_ENTROPY, MSE = range(2)
SGD, ADAM = range(2)
BYTES, FLOATS, DOUBLES = range(3)


class Layer(ctypes.Structure):
    """mk_layer."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                *("kind", "in_h", "in_w", "in_c", "pad_top", "pad_left", "pad_bottom", "pad_right"),
                *("kernel_h", "kernel_w", "stride_h", "stride_w", "out_h", "out_w", "out_c", "act"),
                *("pool", "pool_h", "pool_w", "pool_stride_h", "pool_stride_w", "pool_pad_h", "pool_pad_w"),
                *("end_h", "end_w", "weight", "bias", "mean", "variance", "count", "groups"),
            )
        ),
        ("eps", c_float),
        ("momentum", c_float),
    )


class Parameter(ctypes.Structure):
    """mk_parameter."""

    _fields_ = (
        ("start", c_void_p),
        ("end", c_void_p),
        *((name, c_int64) for name in ("step", "out", "in", "taps", "trained")),
    )


class Job(ctypes.Structure):
    """mk_job."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("parameters", POINTER(Parameter)),
        *((name, c_void_p) for name in ("x", "bytes", "rows", "first", "labels", "targets", "soft", "slopes")),
        *((name, c_void_p) for name in ("batch", "epochs", "steps", "step", "epoch", "device")),
        *((name, c_void_p) for name in ("loss", "seen", "out", "spent")),
        *((name, c_int64) for name in ("num_layers", "num_parameters", "num_devices", "row_size")),
        *((name, c_int64) for name in ("soft_device", "soft_row", "threads", "loss_kind", "training")),
        *((name, c_uint64) for name in ("seed", "round", "use")),
        *((name, c_float) for name in ("lr", "momentum", "weight_decay", "proximal_mu", "temperature", "soft_weight")),
    )


class Encoder(ctypes.Structure):
    """mk_encoder."""

    _fields_ = (
        *((name, c_int64) for name in ("tokens", "patch", "padded", "width", "heads", "inner", "classes", "depth")),
        ("row", c_int64),
        ("where", c_void_p),
        ("eps", c_float),
    )


class HalfJob(ctypes.Structure):
    """mk_half."""

    _fields_ = (
        ("encoder", POINTER(Encoder)),
        *((name, c_void_p) for name in ("x", "start", "num", "labels")),
        *((name, c_void_p) for name in ("weights", "first", "second", "slopes", "out", "loss")),
        *((name, c_int64) for name in ("steps", "threads", "optimizer", "count")),
        *((name, c_double) for name in ("lr", "weight_decay", "momentum")),
    )


class Fields(ctypes.Structure):
    """mk_frames; `listed` is what its fields point to."""

    listed: npt.NDArray[np.int64]
    _fields_ = (
        *((name, c_void_p) for name in ("fields", "pattern", "data", "sound")),
        *((name, c_int64) for name in ("num", "size", "num_fields", "step")),
    )


_lock = threading.Lock()


def load() -> ctypes.CDLL:
    """Gives the library, built for this processor if it isn't in the cache.

    Raises: DependencyError without a compiler; EngineError if it can't be built or loaded.
    """
    with _lock:  # who comes second waits, and builds nothing
        return _load()


@cache
def _load() -> ctypes.CDLL:
    path = toolchain.kernel_library(SOURCES, sanitize=os.environ.get(SANITIZE, ""))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the compiled kernels can't be loaded: {error}") from error
    for name in ("mk_fit", "mk_pass"):
        getattr(library, name).argtypes = [POINTER(Job)]
    library.mk_encoder_steps.argtypes = [POINTER(HalfJob)]
    library.mk_frames_through.argtypes, library.mk_frames_through.restype = [POINTER(Fields)], None
    library.mk_frame_is_sound.argtypes = [POINTER(Fields), c_int64]
    library.mk_crc32.argtypes, library.mk_crc32.restype = [c_void_p, c_int64], ctypes.c_uint32
    library.mk_crc_prepare()
    library.mk_mean.argtypes, library.mk_mean.restype = [c_void_p, c_void_p, c_int64, c_int64, c_void_p], None
    library.mk_permutation.argtypes = [c_uint64, *[ctypes.c_uint32] * 3, c_int64, POINTER(c_int64)]
    library.mk_permutation.restype = None
    return library


@cache
def missing() -> str:
    """Says why there is no library here; "" if there is one."""
    try:
        load()
    except (DependencyError, EngineError) as error:
        return str(error)
    return ""


def begin() -> None:
    """Has the library built, if it must be, while the caller goes on: importing torch takes as long."""
    threading.Thread(target=missing, daemon=True).start()


def run(name: str, job: Job) -> None:
    """Runs a job. Raises: EngineError if memory ran out."""
    if getattr(load(), name)(ctypes.byref(job)):
        raise EngineError("the compiled kernels ran out of memory; take smaller batches or set run.kernels = 'torch'")


def run_half(encoder: Encoder, job: HalfJob) -> None:
    """Does the steps of a server's half. Raises: EngineError if memory ran out."""
    job.encoder = ctypes.pointer(encoder)
    if load().mk_encoder_steps(ctypes.byref(job)):
        raise EngineError("the compiled kernels ran out of memory; take smaller batches or set run.kernels = 'torch'")
