"""NSL-KDD: network connections, normal or attacks, with 17 kinds of attack that only the test set has.

Shape letters: N connections, F features (122).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import sources
from midhaul.data.dataset import Dataset, Floats, Ints
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PROTOCOLS = ("icmp", "tcp", "udp")
FLAGS = ("OTH", "REJ", "RSTO", "RSTOS0", "RSTR", "S0", "S1", "S2", "S3", "SF", "SH")
SERVICES = _names(
    "IRC X11 Z39_50 aol auth bgp courier csnet_ns ctf daytime discard domain domain_u echo eco_i ecr_i efs exec "
    "finger ftp ftp_data gopher harvest hostnames http http_2784 http_443 http_8001 imap4 iso_tsap klogin kshell "
    "ldap link login mtp name netbios_dgm netbios_ns netbios_ssn netstat nnsp nntp ntp_u other pm_dump pop_2 pop_3 "
    "printer private red_i remote_job rje shell smtp sql_net ssh sunrpc supdup systat telnet tftp_u tim_i time urh_i "
    "urp_i uucp uucp_path vmnet whois"
)
CLASSES = ("normal", "dos", "probe", "r2l", "u2r")
ATTACKS = {
    "dos": _names("apache2 back land mailbomb neptune pod processtable smurf teardrop udpstorm"),
    "probe": _names("ipsweep mscan nmap portsweep saint satan"),
    "r2l": _names(
        "ftp_write guess_passwd imap multihop named phf sendmail snmpgetattack snmpguess spy warezclient warezmaster "
        "worm xlock xsnoop"
    ),
    "u2r": _names("buffer_overflow httptunnel loadmodule perl ps rootkit sqlattack xterm"),
}
_CLASS_OF = {
    "normal": 0,
    **{attack: place for place, name in enumerate(CLASSES) for attack in ATTACKS.get(name, ())},
}
_NUM_COLUMNS = 43
_TEXT = {1: PROTOCOLS, 2: SERVICES, 3: FLAGS}
_NUMERIC = tuple(column for column in range(41) if column not in _TEXT)
# Fixed scales, from the definition of the features: durations and bytes span nine decades, the other counts of the
# first part a few, connection counts go to 511 and host counts to 255, rates are in 0..1 already.
_LOG_SCALE = {0: 11.0, 4: 21.0, 5: 21.0, **dict.fromkeys((8, 9, 10, 12, 14, 15, 16, 17, 18), 4.0), 7: 4.0}
_SCALE = {22: 511.0, 23: 511.0, 31: 255.0, 32: 255.0}

_MIRROR = "https://raw.githubusercontent.com/jmnwong/NSL-KDD-Dataset/9d544d0eb9b87d7e2f43ff65733bdb644631d12f/"


def _file(official: str, num_bytes: int, sha256: str, content_bytes: int, content_sha256: str) -> File:
    part = Part(official, _MIRROR + official.replace("+", "%2B"), 2 * content_bytes)
    return File(
        f"nids_nslkdd_{official}.gz",
        num_bytes,
        sha256,
        content_bytes,
        content_sha256,
        (part,),
        "as it is",
        (official,),
    )


TRAIN = _file(
    "KDDTrain+.txt",
    2_049_322,
    "8ca1cf5f3267ae2c3c6465250ab46db4479df56a329521d15cd1138d64a88e8f",
    19_109_424,
    "1b86d2f957b33082081bba410fe129b475efebcc13c9014c3f447c8271aadf95",
)
TEST = _file(
    "KDDTest+.txt",
    374_212,
    "dc6cc9e78468f137fdb683451366a01e1823e94f79515893202a0f54f0cf7ed5",
    3_441_513,
    "fa46b0935342616aa83b7c2578db355b6a7aaabbc492248172c7a1e8b7ab8f84",
)
TEST_21 = _file(
    "KDDTest-21.txt",
    198_386,
    "c13ec437fa93e61a5be50f2396beb7876e13763ba2b2773de20c7f59b2a68e9c",
    1_814_092,
    "746993ac9e25868827cacf09eab450050a2a1056e1ce48a1ad39f5dc801d531d",
)
DESCRIPTION = Description(
    name="nslkdd",
    what="network connections of 41 features, normal or one of 39 attacks, 17 of which only the test set has",
    shape="x [148517, 122] float32, 2 classes (5 with classes=5)",
    key="service",
    licence="no licence text; the University of New Brunswick offers it for research, with citation",
    source="https://www.unb.ca/cic/datasets/nsl.html",
    citation="Tavallaee, Bagheri, Lu, Ghorbani, A Detailed Analysis of the KDD CUP 99 Data Set, CISDA 2009",
    files=(TRAIN, TEST, TEST_21),
)


def load(folder: Path | None = None, *, classes: int = 2, device: str = "service", hard: bool = False) -> Dataset:
    """Gives NSL-KDD; held out: KDDTest+, or with `hard` its subset KDDTest-21.

    Shapes: x [N, 122]: 38 numbers by fixed scales, then one-hot protocol (3), service (70) and flag (11).
    `classes` 2 is normal or attack; 5 is normal, denial of service, probe, remote to local, user to root. The data have
    no users, so a device is all connections to one `service`, or of one `protocol`.
    Limits: the five groups are those that give 7,458, 2,421, 2,754 and 200 attacks in KDDTest+; httptunnel, counted
    under u2r here, is under r2l elsewhere.
    Raises: ConfigError for another number of classes or another device.
    """
    if classes not in (2, len(CLASSES)):
        raise ConfigError(f"nslkdd: classes is {classes}; it must be 2 (normal or attack) or 5")
    if device not in ("service", "protocol"):
        raise ConfigError(f"nslkdd: device is {device!r}; it must be 'service' or 'protocol'")
    test = TEST_21 if hard else TEST
    texts = [sources.read(TRAIN, folder), sources.read(test, folder)]
    return build(texts[0], texts[1], classes, device)


def build(train: bytes, test: bytes, classes: int = 2, device: str = "service") -> Dataset:
    """Gives the data set from the texts of its training and test files. Raises: DataError if they aren't NSL-KDD."""
    tables = [_table(train), _table(test)]
    x, y, places = (np.concatenate(parts) for parts in zip(*map(_parse, tables), strict=True))
    held_out = np.arange(len(x)) >= len(tables[0])
    column = 2 if device == "service" else 1
    return Dataset(
        name="nslkdd",
        x=x,
        y=y if classes == len(CLASSES) else np.minimum(y, 1),
        device=places[:, column - 1],
        device_names=_TEXT[column],
        held_out=held_out,
        class_names=CLASSES if classes == len(CLASSES) else ("normal", "attack"),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=device,
        num_read=len(x),
    )


def _table(text: bytes) -> npt.NDArray[np.void]:
    """Gives the rows as records with fields f0 to f42."""
    kinds = ["U16" if column in (*_TEXT, 41) else "f8" for column in range(_NUM_COLUMNS)]
    try:
        return np.loadtxt(
            io.BytesIO(text), delimiter=",", dtype=[(f"f{i}", kind) for i, kind in enumerate(kinds)], ndmin=1
        )
    except ValueError as error:
        raise DataError(f"that is not a file of NSL-KDD: {error}") from error


def _parse(table: npt.NDArray[np.void]) -> tuple[Floats, Ints, Ints]:
    """Gives the features, the class in 0..4, and the places of protocol, service and flag."""
    places = np.stack([_place(table[f"f{column}"], known) for column, known in _TEXT.items()], axis=1)
    x_NF = np.zeros((len(table), len(_NUMERIC) + sum(map(len, _TEXT.values()))), np.float32)
    for place, column in enumerate(_NUMERIC):
        values = table[f"f{column}"]
        x_NF[:, place] = (
            np.log1p(values) / _LOG_SCALE[column] if column in _LOG_SCALE else values / _SCALE.get(column, 1.0)
        )
    start = len(_NUMERIC)
    for place, known in enumerate(_TEXT.values()):
        x_NF[np.arange(len(table)), start + places[:, place]] = 1.0
        start += len(known)
    attacks = tuple(_CLASS_OF)
    y = np.array(list(_CLASS_OF.values()), np.int64)[_place(table["f41"], attacks)]
    return x_NF, y, places


def _place(values: npt.NDArray[np.str_], known: tuple[str, ...]) -> Ints:
    distinct, place = np.unique(values, return_inverse=True)
    if odd := set(distinct.tolist()) - set(known):
        raise DataError(f"NSL-KDD has no protocol, service, flag or label named {min(odd)!r}; is that its file?")
    return np.array([known.index(name) for name in distinct.tolist()], np.int64)[place]
