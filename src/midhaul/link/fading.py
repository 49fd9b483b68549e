"""How a channel fades in time: complex gains that forget what they were as fast as a device moves.

Shape letters: D devices, T instants, F parts of the band that fade by themselves, A antennas.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.link.propagation import LIGHT_M_S

Doubles = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex128]
Ints = npt.NDArray[np.int64]


def doppler_hz(speed_m_s: float, carrier_hz: float) -> float:
    """Gives the largest shift of frequency that movement makes.

    >>> round(doppler_hz(3.0 / 3.6, 3.5e9), 2)
    9.73
    """
    return speed_m_s * carrier_hz / LIGHT_M_S


def memory(doppler: float, step_s: float) -> float:
    """Gives the correlation of the channel with itself a step later, J0(2 pi f t), which Jakes's spectrum has.

    Source: Clarke 1968; Jakes, "Microwave mobile communications", 1974; Baddour, Beaulieu, "Autoregressive modeling for
    fading channel simulation", IEEE Trans. Wireless Communications 2005 (from memory). Limits: a process of first order
    has it at one step, and its powers at more.
    """
    from scipy.special import j0  # here alone: a run without fading need not wait for it

    return float(j0(2.0 * np.pi * doppler * step_s))


def states(
    seed: int, round: int, devices: Ints, num_steps: int, num_parts: int, correlation: float, index: int = 0
) -> Complexes:
    """Gives Rayleigh fading by an autoregressive process of order one, of mean power 1, from its stationary law on.

    h(t + 1) = r h(t) + sqrt(1 - r^2) w. Shapes: [D] -> [D, T, F] complex. `index` names the antenna.
    """
    words = rng.words_of(seed, round, devices, rng.Use.FADING, 2 * num_steps * num_parts, index)
    noise = rng.normal_of(words).reshape(len(devices), num_steps, num_parts, 2) * np.sqrt(0.5)
    out = np.ascontiguousarray(noise).view(np.complex128)[..., 0]
    fresh = np.sqrt(max(1.0 - correlation**2, 0.0))
    for step in range(1, num_steps):
        out[:, step] = correlation * out[:, step - 1] + fresh * out[:, step]
    return np.asarray(out)


def aged(states_DTF: Complexes, seed: int, round: int, devices: Ints, correlation: float, index: int = 0) -> Complexes:
    """Gives the same channels a while later: what has been learnt of them is that old. Shapes: [D, T, F]."""
    if correlation >= 1.0:
        return states_DTF
    shape = states_DTF.shape
    words = rng.words_of(seed, round, devices, rng.Use.FADING, 2 * shape[1] * shape[2], 128 + index)
    noise = rng.normal_of(words).reshape(*shape, 2) * np.sqrt(0.5)
    fresh = np.ascontiguousarray(noise).view(np.complex128)[..., 0]
    return np.asarray(correlation * states_DTF + np.sqrt(1.0 - correlation**2) * fresh)


def power(states_DTF: Complexes, rice: Doubles) -> Doubles:
    """Gives the power of channels with a direct path of `rice` times the power of the scattered ones (0: none).

    Shapes: [D, T, F], [D] -> [D, T, F]; the mean is 1.
    """
    share = (rice / (1.0 + rice))[:, None, None]
    return np.asarray(np.abs(np.sqrt(share) + np.sqrt(1.0 - share) * states_DTF) ** 2)
