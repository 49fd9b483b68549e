"""FSDD: wav files, one second, mel bands, on tones whose band is known."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest

from midhaul.data import archives, fsdd, load
from midhaul.errors import ConfigError, DataError


def wav(samples: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2").tobytes())
    return stream.getvalue()


def tone(hz: float, num: int = 4000, amplitude: float = 8000) -> np.ndarray:
    return np.rint(amplitude * np.sin(2 * np.pi * hz * np.arange(num) / 8000))


def test_the_official_repository_becomes_the_zip_of_recordings():
    members = {
        "free-spoken-digit-dataset-1.0/README.md": b"no",
        "free-spoken-digit-dataset-1.0/recordings/7_ann_12.wav": wav(tone(500)),
        "free-spoken-digit-dataset-1.0/recordings/3_bob_4.wav": wav(tone(1000)),
        "free-spoken-digit-dataset-1.0/recordings/notes.wav": wav(tone(100)),
    }
    packed = fsdd.convert(iter([archives.write_zip(members)]))
    inside = archives.read_zip(packed, "z", lambda name: True)
    assert list(inside) == ["recordings/3_bob_4.wav", "recordings/7_ann_12.wav", "recordings/notes.wav"]
    data = fsdd.build(inside)
    assert data.x.shape == (2, 1, 49, 40)
    assert data.y.tolist() == [3, 7]
    assert data.device_names == ("speaker ann", "speaker bob")
    assert data.device.tolist() == [1, 0]
    assert data.held_out.tolist() == [True, False]
    assert data.num_read == 3
    assert data.refused[0].line == 3
    assert "isn't named" in data.refused[0].reason


def test_a_tone_is_loudest_in_the_band_around_it():
    filters = fsdd.mel_filters(40)
    assert filters.shape == (40, 129)
    assert filters.max() <= 1.0
    spectrogram = fsdd.log_mel(fsdd.read_wav(wav(tone(1000, 8000)), "t")[None], 40)[0]
    bin_of_tone = 1000 * 256 // 8000
    assert int(spectrogram[20].argmax()) == int(filters[:, bin_of_tone].argmax())
    # A quarter of the amplitude is a sixteenth of the power.
    quieter = fsdd.log_mel(fsdd.read_wav(wav(tone(1000, 8000, 2000)), "t")[None], 40)[0]
    assert float((spectrogram - quieter)[20].max()) == pytest.approx(np.log(16), abs=0.01)


def test_silence_is_the_floor():
    assert fsdd.log_mel(np.zeros((1, 8000), np.float32), 10) == pytest.approx(np.log(1e-6))


def test_clips_become_one_second():
    short = fsdd.fit(np.ones(4000, np.float32))
    assert len(short) == 8000
    assert short[2000:6000].all()
    assert not short[:2000].any()
    assert not short[6000:].any()
    long = np.zeros(12_000, np.float32)
    long[3000:11_000] = 1.0
    assert fsdd.fit(long).all()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"RIFF", "not a sound wav"),
        (wav(tone(100), rate=16_000), r"\(1, 2, 16000\)"),
        (wav(tone(100), channels=2), r"\(2, 2, 8000\)"),
        (wav(np.zeros(0)), "not empty"),
    ],
)
def test_other_sound_files_are_refused(data: bytes, says: str):
    with pytest.raises(DataError, match=says):
        fsdd.read_wav(data, "t.wav")
    with pytest.raises(DataError, match="none of 1 recordings is sound"):
        fsdd.build({"recordings/1_a_1.wav": data})


def test_bands_are_bounded():
    with pytest.raises(ConfigError, match="num_mels is 100"):
        load("fsdd", num_mels=100)
