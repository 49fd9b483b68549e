"""Spoken digits of six people, as log-mel spectrograms a microcontroller can compute.

Shape letters: N clips, S samples, T frames (49), F mel bands.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import archives, sources
from midhaul.data.dataset import Dataset, Refused, number
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError

RATE_HZ = 8000
CLIP = RATE_HZ  # one second
FRAME, HOP = 256, 160  # 32 ms every 20 ms: 49 frames a second
LOW_HZ, HIGH_HZ = 20.0, 4000.0
FLOOR = 1e-6  # added to the power of a band, so that silence has a logarithm
CENTRE, SPREAD = -9.9, 5.0  # of the log-mel numbers of the training clips, rounded
_TEST_INDEX = 5  # the publisher's test set: recordings 0 to 4 of each speaker and digit

FILE = File(
    name="audio_fsdd_wav.zip",
    num_bytes=16_157_653,
    sha256="005e7effa810271be22d7b8af382dfd756687fd1becc33f386c1a88c454c4ab6",
    content_bytes=30_000_000,
    content_sha256="45254aed2010fa0ae750ec0bfe2507c6fd5a9b624f4f7526f42dc872bcef7165",
    parts=(
        Part(
            "free-spoken-digit-dataset.zip",
            "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/"
            "26eb9aaf76e81b692f806f9140c2d2777410d7a1.zip",
            60_000_000,
        ),
    ),
    fetch="converted",
)
DESCRIPTION = Description(
    name="fsdd",
    what="spoken digits, 3,000 clips of 6 speakers at 8 kHz, as log-mel spectrograms of one second",
    shape="x [3000, 1, 49, 40] float32, 10 classes",
    key="speaker",
    licence="CC BY-SA 4.0 (share alike: what is made of it carries the same licence)",
    source="https://github.com/Jakobovski/free-spoken-digit-dataset",
    citation="Jackson et al., Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401",
    files=(FILE,),
)


def load(folder: Path | None = None, *, num_mels: int = 40) -> Dataset:
    """Gives the clips as log-mel spectrograms; held out: the publisher's test set, index 0 to 4.

    Shapes: x [N, 1, 49, num_mels]; with num_mels=10 the input of the keyword-spotting networks of MLPerf Tiny. A longer
    clip is cut to the second with the most energy, a shorter one stands in the middle of silence.
    Raises: ConfigError if num_mels is outside 4..64.
    """
    if not 4 <= num_mels <= 64:
        raise ConfigError(f"fsdd: num_mels is {num_mels}; it must lie in 4..64")
    return build(archives.read_zip(sources.read(FILE, folder, convert), FILE.name, _is_wav), num_mels)


def build(members: dict[str, bytes], num_mels: int = 40) -> Dataset:
    """Gives the data set from wav files named recordings/{digit}_{speaker}_{index}.wav; others are set aside."""
    clips, digits, speakers, held_out, refused = [], [], [], [], []
    for place, (name, data) in enumerate(members.items(), 1):
        match = re.search(r"(\d)_([a-z]+)_(\d+)\.wav$", name)
        try:
            if match is None:
                raise DataError(f"{name} isn't named digit_speaker_index.wav")
            clips.append(fit(read_wav(data, name)))
        except DataError as error:
            refused.append(Refused(place, str(error)))
            continue
        digits.append(int(match[1]))
        speakers.append(match[2])
        held_out.append(int(match[3]) < _TEST_INDEX)
    if not clips:
        raise DataError(f"fsdd: none of {len(members)} recordings is sound; is that the archive?")
    device, names = number(speakers)
    x_NTF = (log_mel(np.stack(clips), num_mels) - CENTRE) / SPREAD
    return Dataset(
        name="fsdd",
        x=x_NTF[:, None].astype(np.float32),
        y=np.array(digits, np.int64),
        device=device,
        device_names=tuple(f"speaker {name}" for name in names),
        held_out=np.array(held_out, np.bool_),
        class_names=tuple(str(digit) for digit in range(10)),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=len(members),
        refused=tuple(refused),
    )


def convert(parts: Iterator[bytes]) -> bytes:
    """Gives the zip of recordings from the archive of the official repository."""
    members = archives.read_zip(next(parts), "the archive of the repository", _is_wav)
    return archives.write_zip({f"recordings/{name.rsplit('/', 1)[1]}": data for name, data in members.items()})


def read_wav(data: bytes, what: str) -> npt.NDArray[np.float32]:
    """Gives the samples of a mono 16-bit 8 kHz wav file in -1..1. Raises: DataError for another file. Shapes: [S]."""
    try:
        with wave.open(io.BytesIO(data)) as reader:
            form = (reader.getnchannels(), reader.getsampwidth(), reader.getframerate())
            samples = np.frombuffer(reader.readframes(len(data) // 2), "<i2") if form == (1, 2, RATE_HZ) else None
    except (wave.Error, EOFError, ValueError) as error:
        raise DataError(f"{what} is not a sound wav file ({error})") from error
    if samples is None or len(samples) == 0:
        raise DataError(f"{what} has (channels, bytes, Hz) {form}; it must be (1, 2, {RATE_HZ}) and not empty")
    return samples.astype(np.float32) / np.float32(32768.0)


def fit(samples_S: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Gives exactly one second: the loudest of a longer clip, a shorter one padded alike on both sides."""
    if len(samples_S) <= CLIP:
        before = (CLIP - len(samples_S)) // 2
        return np.pad(samples_S, (before, CLIP - len(samples_S) - before))
    energy = np.concatenate([[0.0], np.cumsum(samples_S.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[CLIP:] - energy[:-CLIP]))
    return samples_S[start : start + CLIP]


def log_mel(clips_NS: npt.NDArray[np.float32], num_mels: int) -> npt.NDArray[np.float32]:
    """Gives log(power in each mel band + 1e-6) of each Hann-windowed frame. Shapes: [N, 8000] -> [N, 49, num_mels]."""
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    filters = mel_filters(num_mels)
    num_frames = 1 + (CLIP - FRAME) // HOP
    out = np.empty((len(clips_NS), num_frames, num_mels), np.float32)
    for clip, spectrogram in zip(clips_NS, out, strict=True):
        frames = np.lib.stride_tricks.sliding_window_view(clip, FRAME)[::HOP] * window
        power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
        spectrogram[:] = np.log(power @ filters.T + FLOOR)
    return out


def mel_filters(num_mels: int) -> npt.NDArray[np.float64]:
    """Gives triangles of height 1, evenly spaced in mel(f) = 2595 log10(1 + f / 700). Shapes: [num_mels, 129].

    Source: O'Shaughnessy, Speech Communication: Human and Machine, 1987, for the scale.
    """
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (LOW_HZ, HIGH_HZ))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, num_mels + 2) / 2595.0) - 1.0)
    freq = np.fft.rfftfreq(FRAME, 1.0 / RATE_HZ)
    rise = (freq - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - freq) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rise, fall)), np.float64)


def _is_wav(name: str) -> bool:
    return re.search(r"(^|/)recordings/[^/]+\.wav$", name) is not None
