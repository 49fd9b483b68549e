"""The settings of a run: read from TOML, checked, and written back resolved.

Every key is a field below with its help, and nothing else is accepted. `docs/config.md` is made from this list.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import tomli_w

from midhaul.errors import ConfigError, nearest

Options = dict[str, Any]


def option(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Gives a dataclass field with its help and its bounds: low <= value <= high, value > above, or one of choices."""
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """[data]: what the devices hold."""

    name: str = option("digits", "a data set (`midhaul data list`), or npz:PATH or csv:PATH for your own arrays")
    partition: str = option(
        "auto",
        "who holds which rows, or in vertical which features of all rows; auto: by the natural id where there is one, "
        "vertical for the scheme vertical, else iid",
        choices=(
            "auto",
            "natural",
            "iid",
            "dirichlet",
            "dirichlet_by_class",
            "classes",
            "quantity",
            "vertical",
            "episodes",
        ),
    )
    num_devices: int = option(0, "devices to make where the partition is not natural; 0: ten", low=0, high=1_000_000)
    alpha: float = option(0.5, "concentration of the Dirichlet partition; smaller is more uneven", above=0.0)
    classes_per_device: int = option(2, "classes that each device sees, partition = classes or episodes", low=1)
    shots: int = option(1, "partition = episodes: rows of each class that a device adapts on", low=1)
    queries: int = option(5, "partition = episodes: other rows of each class, that it is asked about", low=1)
    new_devices: int = option(100, "partition = episodes: devices with classes of their own, to be tested", low=1)
    public: float = option(
        0.0, "share given to the server as public data (devices if natural, else rows)", low=0, high=0.95
    )
    test: str = option(
        "auto",
        "test rows: the publisher's, a share of each device's own, or of all rows; auto: held_out where there are any",
        choices=("auto", "device", "held_out", "shared"),
    )
    test_fraction: float = option(0.2, "share of a device's rows kept for its test", above=0.0, high=0.9)
    adapt: float = option(0.0, "share of a held-out device's rows that it may adapt on", low=0.0, high=0.9)
    max_rows: int = option(0, "cap on a device's rows; 0: none", low=0)
    min_rows: int = option(1, "a natural device with fewer rows takes no part; 1: none is left out", low=1)
    drift_round: int = option(0, "the round from which some devices' rows are others; 0: never", low=0)
    drift_devices: float = option(0.2, "share of the devices whose rows drift", above=0.0, high=1.0)
    drift: str = option(
        "labels",
        "what becomes of a drifting device's rows: each class is called by another's name, or the inputs change sign",
        choices=("labels", "sign"),
    )
    options: Options = option({}, "options of the loader, for example label = 'column' for csv:")


@dataclass(frozen=True)
class FleetConfig:
    """[fleet]: the devices."""

    board: str = option(
        "stm32l4",
        "the board of the devices (`midhaul boards`); several, a,b, go round, and a*3,b*7 are three and seven of these",
    )
    cohort: float = option(1.0, "devices in a round: a share of the fleet if at most 1, else a number", above=0.0)
    stragglers: float = option(0.0, "share of a cohort that only has time for some of its epochs", low=0.0, high=1.0)
    dropout: float = option(0.0, "probability that a device is absent from a round", low=0.0, high=0.999)
    round_deadline_s: float = option(
        0.0, "simulated seconds after which a round goes on without a device; 0: it waits for all", low=0.0
    )
    weighting: str = option(
        "examples", "what a device counts by in a mean: its examples, or all alike", choices=("examples", "uniform")
    )
    speed_spread: float = option(
        0.0, "spread of the devices' speeds: a device takes exp(spread x normal) times its seconds", low=0.0, high=5.0
    )
    mode: str = option(
        "synchronous",
        "whether a round waits for its whole cohort, for the next reply, or for a buffer of replies",
        choices=("synchronous", "fedasync", "fedbuff"),
    )
    buffer: int = option(10, "fedbuff: replies in a version of the model; 0: as many as the cohort", low=0)
    mixing: float = option(0.6, "fedasync: weight of a fresh reply against the model", above=0.0, high=1.0)
    staleness: str = option(
        "polynomial",
        "fedasync, fedbuff: what a reply s versions old counts for: (1 + s)^-a, 1 / (a (s - b) + 1) beyond b, or 1",
        choices=("polynomial", "hinge", "constant"),
    )
    staleness_exponent: float = option(0.5, "fedasync, fedbuff: a of the staleness function", above=0.0)
    staleness_grace: int = option(4, "fedasync, fedbuff: b of the hinge, in versions", low=0)
    detector: str = option(
        "none",
        "what watches a device's error for drift: Page and Hinkley's test, or ADWIN",
        choices=("none", "page_hinkley", "adwin"),
    )
    detector_threshold: float = option(10.0, "page_hinkley: wrong answers beyond the usual that are drift", above=0.0)
    detector_rounds: int = option(10, "rounds that a device whose detector fired is in the cohort", low=1)
    replay: int = option(0, "rows from before its data drifted that a device keeps and trains on, in its flash", low=0)
    check: bool = option(True, "refuse a scheme that doesn't fit the board before the run")
    selection: str = option(
        "random",
        "who is in a cohort: drawn, those that waited longest, those with the best channels, as many as a deadline "
        "lets (FedCS), by utility and speed (Oort), or by utility and joules (midhaul's own)",
        choices=("random", "round_robin", "best_channel", "fedcs", "oort", "frugal"),
    )
    explore: float = option(
        0.9, "oort: share of the first cohort that is new; falls to 0.2 by 2 % a round", low=0.0, high=1.0
    )
    oort_alpha: float = option(2.0, "oort: how much slower devices than wanted lose: (T / t)^alpha", low=0.0)
    pacer_rounds: int = option(20, "oort: rounds whose gain is compared before slower devices are waited for", low=1)
    thrift: float = option(
        1.0, "frugal: how much joules count against utility; 0.5: the surest mean for the energy", low=0.0, high=10.0
    )
    battery_j: float = option(
        0.0, "what a device's battery holds, after which it is gone; 0: no end, -1: its board's own figure", low=-1.0
    )
    battery_spread: float = option(
        0.0, "spread of the batteries: a device has exp(spread x normal) times its joules", low=0.0, high=5.0
    )
    deadline_s: float = option(
        120.0, "firmware and gateways: how long a device or a gateway may take to answer, in seconds", above=0.0
    )
    quorum: float = option(
        0.0,
        "gateways: share of the devices asked that must answer; with fewer the round is repeated",
        low=0.0,
        high=1.0,
    )
    keepalive_s: float = option(
        10.0,
        "gateways: seconds of silence after which the other end is asked whether it is there; it has as long to answer",
        low=0.1,
        high=3600.0,
    )


@dataclass(frozen=True)
class TinyConfig:
    """[tiny]: the model on the devices."""

    model: str = option(
        "mlp", "a tiny model (`midhaul size --list`); several, a,b, go round in schemes for unlike models"
    )
    norm: str = option(
        "refuse",
        "what becomes of batch norm: group norm instead, or kept on each device (FedBN)",
        choices=("refuse", "group", "fedbn"),
    )
    precision: str = option(
        "float32",
        "what devices compute in; int8: all before the head, which the server has taught and nobody trains on",
        choices=("float32", "int8"),
    )
    lora_rank: int = option(0, "rank of low-rank adapters on its dense and 1x1 layers; 0: none", low=0)
    lora_targets: str = option(
        "all", "layers that have adapters: all, linear, or names with * for any text, parted by commas"
    )
    lora_scale: float = option(1.0, "factor of the adapters' product: alpha over the rank", above=0.0)
    options: Options = option(
        {}, "options of the model's builder, for example hidden = [64]; of several models, a table for each"
    )


@dataclass(frozen=True)
class LargeConfig:
    """[large]: the model on the server."""

    model: str = option("auto", "a large model; auto picks one by the shape of its input")
    epochs: int = option(30, "epochs of its training on public data (TL, FTL)", low=0)
    batch: int = option(64, "rows in a step of the server", low=1)
    lr: float = option(1e-3, "the server's learning rate for the large model", above=0.0)
    weight_decay: float = option(1e-4, "the server's weight decay", low=0.0)
    rotate_deg: float = option(
        0.0, "turn three-axis signals by a random angle of this deviation while the server trains", low=0.0, high=180.0
    )
    optimizer: str = option("adam", "the server's optimiser for the large model", choices=("adam", "sgd"))
    options: Options = option({}, "options of the model's builder")


@dataclass(frozen=True)
class SchemeConfig:
    """[scheme]: how the two are trained together."""

    name: str = option("fedavg", "the scheme (`midhaul schemes`)")
    lr: float = option(0.05, "the devices' learning rate", above=0.0)
    lr_schedule: str = option(
        "constant",
        "how the devices' rate goes over the rounds, and in split schemes the server's behind the cut: as it is, "
        "falling at milestones, by a factor each round, along a cosine, or along a line",
        choices=("constant", "step", "exponential", "cosine", "linear"),
    )
    lr_milestones: str = option("", "lr_schedule = step: the rounds after which the rate falls, 'a,b'")
    lr_gamma: float = option(
        0.1, "lr_schedule = step, exponential: the factor at each milestone, or each round", above=0.0, high=1.0
    )
    lr_final: float = option(
        0.0,
        "lr_schedule = cosine, linear: the share of the rate that the curve comes to after the last round",
        low=0.0,
        high=1.0,
    )
    lr_warmup: int = option(0, "rounds in which the rate rises along a line, before whatever lr_schedule says", low=0)
    momentum: float = option(0.0, "the devices' momentum", low=0.0, high=0.999)
    weight_decay: float = option(0.0, "the devices' weight decay", low=0.0)
    batch: int = option(16, "rows in a step of a device; 0: all of them", low=0)
    epochs: int = option(1, "epochs a device trains in a round", low=1)
    loss: str = option("cross_entropy", "the devices' loss", choices=("cross_entropy", "mse"))
    slice: str = option(
        "whole", "fedavg, fedprox, fedadam: what is trained and sent: whole, head, bias, lora, layers:A,B"
    )
    proximal_mu: float = option(0.1, "fedprox: weight of the proximal term", low=0.0)
    server_lr: float = option(0.01, "fedadam: the server's learning rate", above=0.0)
    beta1: float = option(0.9, "fedadam: decay of the first moment", low=0.0, high=0.9999)
    beta2: float = option(0.99, "fedadam: decay of the second moment", low=0.0, high=0.9999)
    tau: float = option(1e-3, "fedadam: adaptivity", above=0.0)
    server_step: str = option(
        "device",
        "federated_split, cse_fsl: the server's half steps on each device's batch in turn, or once on those of all",
        choices=("device", "cohort"),
    )
    drop_stragglers: bool = option(True, "leave out stragglers; false: take what they did, as fedprox always does")
    temperature: float = option(3.0, "transfer, feddf, fedmd, co_learning: temperature of the distillation", above=0.0)
    soft_weight: float = option(0.7, "transfer: weight of the teacher against the labels", low=0.0, high=1.0)
    distill_epochs: int = option(30, "transfer: epochs of the distillation on public data", low=0)
    distill_lr: float = option(
        2e-3, "transfer, feddf, co_learning: the server's learning rate for the tiny model", above=0.0
    )
    distill: str = option(
        "logits",
        "what the large model teaches: its logits (Hinton), or first features of a layer in its middle (FitNets)",
        choices=("logits", "features"),
    )
    hint_layer: str = option("", "distill = features: the large model's layer; empty: the middle one")
    guided_layer: str = option("", "distill = features: the tiny model's layer; empty: the middle one")
    hint_epochs: int = option(10, "distill = features: epochs on the hint before the logits", low=0)
    tune_lr: float = option(0.01, "transfer: the devices' learning rate while they fine-tune", above=0.0)
    tune: str = option(
        "head", "transfer: what devices fine-tune: none, head, bias, whole, lora, layers:A,B, tensors:A,B"
    )
    probe: float = option(
        0.3, "sparse_transfer: share of the public rows that tell what a tensor is worth", above=0.0, high=0.9
    )
    probe_epochs: int = option(3, "sparse_transfer: epochs that each tensor is trained alone to tell", low=1)
    adapter_blocks: int = option(1, "offsite_tuning: the large model's blocks in each of the two adapters", low=1)
    emulator: float = option(
        0.5, "offsite_tuning: share of the blocks between that devices are given", above=0.0, high=1.0
    )
    sram_bytes: int = option(0, "sparse_transfer: SRAM that a device may use; 0: all of its board", low=0)
    cut: str = option(
        "",
        "split: the layer whose output is sent; empty: the first that can be. federated_split_mixed: several, a,b, "
        "dealt in turn, or with counts as in scheme.width_mix; empty: the deepest that fits a device's board",
    )
    widths: str = option(
        "1,0.5,0.25,0.125,0.0625",
        "heterofl, fedrolex: shares of the channels; a device has the largest that fits its board",
    )
    width_mix: str = option(
        "",
        "heterofl, fedrolex: shares of the channels dealt to the devices in turn, instead; 1*3,0.5*7 are for the first "
        "three and the other seven",
    )
    test_width: float = option(
        0.0,
        "heterofl, fedrolex: width that new test devices test; 0: the largest that any device has",
        low=0.0,
        high=1.0,
    )
    ranks: str = option(
        "16,8,4,2,1",
        "federated LoRA, unless tiny.lora_rank is set: a device's adapters have the largest rank that fits its board",
    )
    rank_mix: str = option(
        "", "federated LoRA: ranks dealt to the devices in turn, instead, or with counts as in scheme.width_mix"
    )
    half_lr: float = option(0.0, "split schemes: the server's learning rate behind the cut; 0: large.lr", low=0.0)
    pretrain: bool = option(False, "split schemes: both halves begin as trained on the server's public data")
    relay_groups: int = option(2, "group_split: groups that train side by side, with a relay in each", low=1)
    upload_every: int = option(5, "cse_fsl: a device's steps from one upload of activations to the next", low=1)
    server_epochs: int = option(1, "fedgkt: epochs of the large model on a round's features", low=1)
    body: str = option(
        "distilled",
        "federated_transfer: the frozen body: the tiny model's, taught by the large one, or the large model's own, cut",
        choices=("distilled", "cut"),
    )
    body_cut: str = option("", "federated_transfer, body = cut: the large model's layer; empty: its first cut point")
    nopeek: float = option(
        0.0,
        "split schemes: weight of the distance correlation of examples and activations in the device's loss",
        low=0.0,
    )
    features: int = option(32, "split_u: width of what the server sends back to the device's tail", low=1)
    head_epochs: int = option(1, "fedrep: epochs on the head before the body", low=1)
    inner_lr: float = option(0.05, "FML: learning rate of the inner loop, and of a new device that adapts", low=0.0)
    inner_steps: int = option(5, "FML: steps of the inner loop (Per-FedAvg has one)", low=0)
    support: float = option(
        0.5,
        "FML: rows of a step that the inner loop sees, the others are the query: a share below 1, or a number; "
        "0: all are both",
        low=0.0,
    )
    meta_optimizer: str = option(
        "mean",
        "FML: how the server steps: towards the mean of the devices' models, or by Adam",
        choices=("mean", "adam"),
    )
    meta_lr: float = option(1.0, "FML: the share of the way to that mean, or Adam's learning rate", above=0.0)
    meta_anneal: bool = option(False, "FML: meta_lr falls to nothing along a line over the run's rounds")
    local_steps: int = option(
        0, "per_fedavg, pfedme: steps that a device makes in a round, whatever its rows; 0: scheme.epochs", low=0
    )
    moreau: float = option(15.0, "pfedme: how strongly the shared model pulls the personal one (lambda)", above=0.0)
    difference_step: float = option(1e-3, "per_fedavg_hf: how far the finite difference looks", above=0.0)
    beside: str = option(
        "", "fedit, flora, flexlora, hetlora: what is trained and averaged beside the adapters: head, bias, layers:A,B"
    )
    num_seeds: int = option(1024, "fedkseed: directions, a number each on the wire", low=1, high=4096)
    seed_step: float = option(1e-3, "fedkseed: how far ahead and behind along a direction a loss is taken", above=0.0)
    rank_weight: str = option(
        "norm", "hetlora: a device weighs by the norm of its product, or by its examples", choices=("norm", "examples")
    )
    adapt_epochs: int = option(5, "epochs that a held-out device adapts its own slice (data.adapt > 0)", low=1)
    exchange_rows: int = option(
        0, "feddf, fedmd, fedmkt, co_learning: public rows that a round uses, drawn anew each round; 0: all", low=0
    )
    exchange_epochs: int = option(
        5,
        "feddf, fedmd, fedmkt, co_learning: epochs on public rows in each distillation of a round; 0: none",
        low=0,
    )
    large_start: str = option(
        "self_supervised",
        "feddf, fedmd, fedmkt, co_learning: how the models begin: as drawn, the large one self-supervised on public "
        "rows, or both trained on public rows and their labels",
        choices=("drawn", "self_supervised", "labelled"),
    )
    large_weight: float = option(
        1.0, "fedmd: weight of the large model in the consensus, a device's being 1; 0: it only learns", low=0.0
    )
    exchange: str = option(
        "both",
        "co_learning: who teaches whom: the large model the tiny ones (teach), they it (return), or both",
        choices=("both", "teach", "return", "none"),
    )
    from_large: bool = option(False, "feddf: the large model, once it is taught, teaches the tiny one as well")
    pooled_model: str = option("large", "pooled: which model is trained", choices=("large", "tiny"))


@dataclass(frozen=True)
class LinkConfig:
    """[link]: what lies between the server and the devices."""

    radio: str = option("auto", "a radio (`midhaul boards --radios`); auto: the board's own")
    loss: float = option(-1.0, "share of frames lost; -1: the radio's own figure", low=-1.0, high=0.999)
    retries: int = option(3, "how often a lost frame is sent again before the device counts as absent", low=0, high=100)
    activations: str = option(
        "none",
        "split schemes: how activations are coded: none, 32bit, 8bit, 4bit, 2bit, topk:SHARE, qsgd:LEVELS, "
        "fedlite:SUBVECTORS,CENTROIDS,GROUPS",
    )
    gradients: str = option("none", "split schemes: how gradients at the cut are coded, in the same words")
    up: str = option(
        "none",
        "how the weights that devices send are coded: none, or stages in this order: delta, then topk:SHARE, "
        "randk:SHARE or powersgd:RANK, then quantise:BITS, qsgd:LEVELS, sign or vote:STEP, then entropy",
    )
    up_bits: str = option(
        "",
        "bits of quantise in link.up dealt to the devices in turn, 8,4, or with counts, 8*3,4*7; empty: as in link.up",
    )
    down: str = option("none", "how the weights that devices are sent are coded: the same, less powersgd and vote")
    keep_frames: bool = option(
        False, "write every frame that is sent to the run's folder, a file a round and direction"
    )
    error_feedback: bool = option(
        True,
        "the sender of a coded gradient, or a device of an update, adds what coding took from it when it was last sent",
    )
    correction: float = option(
        0.0, "the device adds this times what coding took from its activations to their gradient (FedLite)", low=0.0
    )
    energy: str = option(
        "transfer",
        "what a radio is charged: a fixed power while it sends or receives, or by its states: circuits and amplifier, "
        "receiving, waiting, sleeping and waking, and the board asleep",
        choices=("transfer", "states"),
    )
    allocation: str = option(
        "own",
        "how the devices of a step share the band up: each as its radio has it, one after another, equal parts, parts "
        "for the least energy by the round's deadline, or for the least time; all but own want link.energy = states",
        choices=("own", "turns", "equal", "min_energy", "min_time"),
    )
    allocation_down: str = option(
        "own",
        "how the devices of a step share their cell's band down: each with fair shares, parts of it at once for the "
        "least time, one after another for the least energy, or what is the same for several broadcast at the rate of "
        "the worst channel; all but own want link.cell and link.energy = states",
        choices=("own", "at_once", "turns", "broadcast"),
    )
    slack: float = option(
        3.0, "min_energy without fleet.round_deadline_s: how many times the least time sending may take", low=1.0
    )
    cell: str = option(
        "none",
        "the cell that devices with cellular radios are in (3GPP TR 38.901); umi: street canyons, uma: over roofs; "
        "none: a radio has its own figures wherever it is",
        choices=("none", "umi", "uma"),
    )
    large_scale: str = option(
        "builtin",
        "cell: who draws path loss, shadowing and walls: midhaul, or sionna-no-rt (extra `radio`), which stands still",
        choices=("builtin", "sionna"),
    )
    carrier_ghz: float = option(3.5, "cell: carrier frequency", low=0.5, high=100.0)
    bandwidth_mhz: float = option(20.0, "cell: bandwidth of its channel, shared by the devices in it", low=0.0)
    spacing_khz: int = option(30, "cell: subcarrier spacing: 15, 30, 60, 120", low=15, high=120)
    duplex: str = option("DDDSU", "cell: slots down (D), up (U) and special (S) in turn, or fdd")
    inter_site_m: float = option(0.0, "cell: distance between base stations; 0: 200 (umi), 500 (uma)", low=0.0)
    rings: int = option(1, "cell: rings of neighbouring base stations, which interfere", low=0, high=3)
    sectors: int = option(3, "cell: sectors of a base station: 1 or 3", low=1, high=3)
    load: float = option(0.5, "cell: share of the time that neighbouring cells send", low=0.0, high=1.0)
    area: str = option(
        "hexagon", "cell: where devices are dropped: the centre's hexagon, or a disc", choices=("hexagon", "disc")
    )
    min_distance_m: float = option(0.0, "cell: the nearest that a device is; 0: 10 (umi), 35 (uma)", low=0.0)
    indoors: float = option(0.8, "cell: share of the devices that are indoors", low=0.0, high=1.0)
    building: str = option(
        "low", "cell: loss of buildings from 6 GHz on; below it all are alike", choices=("low", "high")
    )
    height_m: float = option(1.5, "cell: height of the devices; 0: by the floors of buildings", low=0.0, high=22.5)
    mobility: str = option(
        "static",
        "cell: how devices move: not at all, straight on, or turning every 20 s; signals fade at speed_kmh in any case",
        choices=("static", "line", "wander"),
    )
    speed_kmh: float = option(3.0, "cell: speed of the devices, or of what moves around them", low=0.0, high=500.0)
    tx_dbm: float = option(0.0, "cell: power of a sector over its band; 0: 44 (umi), 49 (uma)", low=0.0, high=60.0)
    antennas: int = option(2, "cell: antennas of a sector, combined", low=1, high=64)
    p0_dbm: float = option(-80.0, "cell: power that a base station wants of a block (TS 38.213)", low=-202.0, high=24.0)
    alpha: float = option(0.8, "cell: share of the path loss that devices make up for (TS 38.213)", low=0.0, high=1.0)
    transmissions: int = option(4, "cell: how often a block is sent at most, with hybrid ARQ", low=1, high=16)
    trace: str = option(
        "",
        "files of measured throughput that devices' rates follow, dealt in turn: a.csv,b.log; columns of the Irish 5G "
        "or time and throughput, or lines of the Norwegian HSDPA logs",
    )


@dataclass(frozen=True)
class PrivacyConfig:
    """[privacy]: what is done to an update before it leaves the device."""

    clip: float = option(0.0, "largest L2 norm of a device's update; 0: no clipping", low=0.0)


@dataclass(frozen=True)
class RunConfig:
    """[run]: the run itself."""

    rounds: int = option(20, "rounds", low=1)
    seed: int = option(0, "the seed of everything random", low=0, high=2**63 - 1)
    engine: str = option(
        "stacked",
        "the engine: devices one by one, all at once, all at once on the workers of a cluster, some on firmware "
        "(run.devices) and the rest all at once, or behind gateways on other machines (`midhaul serve`)",
        choices=("loop", "stacked", "cluster", "firmware", "gateways"),
    )
    devices: str = option(
        "host:",
        "engine firmware: where the first devices are, for example qemu:cortex-m4*4,host:*3; the rest is simulated",
    )
    keys: str = option(
        "", "engine firmware: a file with a line `ADDRESS HEX` for each board, HEX its key of 64 hexadecimal digits"
    )
    target_accuracy: float = option(
        0.0, "tell the seconds, joules and bytes until this accuracy; 0: none", low=0.0, high=1.0
    )
    stop_at_target: bool = option(False, "end with the round that is as accurate as target_accuracy")
    within: str = option(
        "", "what the run may cost, as in `midhaul plan`: joules=20,hours=6 (also bytes, uplink_bytes); empty: no end"
    )
    replan_every: int = option(
        0, "rounds from one look at whether run.within will be kept to the next, and a new plan if not; 0: none", low=0
    )
    replan_margin: float = option(
        0.2, "replan_every: how far from what was expected costs may be before it is told", above=0.0, high=10.0
    )
    replan_models: bool = option(
        False, "replan_every: deal out each device's width, cut or rank anew as well, where the scheme can go on so"
    )
    when_over: str = option(
        "go_on",
        "replan_every: what a run does that no new plan keeps within run.within: goes on by the nearest, or does so "
        "for as many rounds as that allows and ends",
        choices=("go_on", "stop"),
    )
    expected: Options = option(
        {}, "what `midhaul plan` expects: rounds, what each costs, and the law that its accuracy follows"
    )
    evaluate_every: int = option(1, "rounds between evaluations; the last round is always evaluated", low=1)
    checkpoint_every: int = option(1, "rounds between checkpoints", low=1)
    tensorboard: bool = option(
        False, "write the figures of each round for TensorBoard, too, to `tensorboard` in the run's folder (extra)"
    )
    workers: int = option(
        0,
        "engine cluster: workers, each with run.threads cores of some machine; 0: as many as there is room for",
        low=0,
        high=100_000,
    )
    address: str = option(
        "",
        "engine cluster: the Ray cluster: auto (the one that this machine is in), HOST:PORT or ray://HOST:PORT; empty: "
        "workers on this machine, which end with the run",
    )
    memory: str = option(
        "auto",
        "what the whole run may take of memory, such as 4GB: as many devices are trained at once as fit beside the "
        "data (engine cluster: in each worker); auto: 1 GB for these",
    )
    threads: int = option(0, "torch threads; 0: as torch has it, and one for a worker of the cluster", low=0, high=1024)
    device: str = option(
        "cpu",
        "where the server's models and the devices of the engine stacked are computed: cpu, cuda or cuda:N (a GPU); "
        "auto: the first GPU that torch sees, else cpu",
    )
    precision: str = option(
        "float32",
        "on a GPU, how precisely products are taken: as on a processor, in TF32, or in bfloat16 with weights and sums "
        "in float32",
        choices=("float32", "tf32", "bf16"),
    )
    kernels: str = option(
        "auto",
        "what computes in the stacked engine, and a server's half behind a cut: compiled kernels where they know the "
        "model, else torch; torch alone; or on the devices the kernels alone, and an error where they can't",
        choices=("auto", "torch", "native"),
    )


@dataclass(frozen=True)
class InferenceConfig:
    """[inference]: how the two answer together after the run (`midhaul cascade`); nothing of it changes the run."""

    gate: str = option(
        "best",
        "what a model is sure by; best: what costs least on the calibration rows",
        choices=("best", "probability", "entropy", "margin", "learned"),
    )
    send: str = option(
        "x",
        "what goes up where the device isn't sure: the raw input, or features at a cut of the large model (a split "
        "run's own cut); none: no large model is asked",
        choices=("x", "h", "none"),
    )
    cut: str = option("", "the large model's layer whose output is sent; empty: its first cut point")
    answer: str = option("label", "what the server sends back", choices=("label", "logits"))
    exit: str = option("", "the tiny model's layer behind which it may answer early; empty: none")
    calibrate: float = option(
        0.5,
        "share of the held-out rows (devices, where they are new ones) to choose thresholds on",
        above=0.0,
        high=0.9,
    )
    server_gmacs: float = option(100.0, "how fast the server is: billions of MACs a second", above=0.0)


@dataclass(frozen=True)
class Config:
    """Everything that a run is told."""

    data: DataConfig = field(default_factory=DataConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)
    large: LargeConfig = field(default_factory=LargeConfig)
    scheme: SchemeConfig = field(default_factory=SchemeConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def replace(self, **changes: Any) -> Config:
        """Gives the config with `section_key=value` changes, checked: `replace(run_seed=3)`."""
        table = to_table(self)
        for name, value in changes.items():
            section, _, key = name.partition("_")
            table.setdefault(section, {})[key] = value
        return from_table(table)


def read(path: Path) -> Config:
    """Reads a config file. Raises: ConfigError in one sentence, whatever is wrong with it."""
    return from_table(read_table(path), where=str(path))


def read_table(path: Path) -> dict[str, Any]:
    """Reads a TOML file as it is."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}; give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the config file {path} can't be read ({error}); check the path and its permissions"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; mend that line") from None


def from_table(table: Mapping[str, Any], where: str = "the config") -> Config:
    """Gives the checked config of a nested table. Raises: ConfigError naming the key and the nearest known one."""
    sections = get_type_hints(Config)
    parts: dict[str, Any] = {}
    for section, values in table.items():
        if section not in sections:
            raise ConfigError(f"{where} has an unknown section [{section}]{nearest(section, sections)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: {section} must be a section, [{section}], not a value")
        parts[section] = _section(sections[section], section, values, where)
    return Config(**parts)


def override(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Gives the table with `a.b=c` assignments made; c is read as TOML, or else as a string.

    >>> override({"run": {"seed": 1}}, ["run.seed=2", "data.name=har"])
    {'run': {'seed': 2}, 'data': {'name': 'har'}}
    """
    out: dict[str, Any] = {
        section: dict(values) if isinstance(values, Mapping) else values for section, values in table.items()
    }
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not sign or len(keys) < 2 or not all(keys):
            raise ConfigError(f"--set {assignment!r} is not of the form section.key=value")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        inner = out
        for place in keys[:-1]:
            inner = inner.setdefault(place, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {assignment!r}: {place} is a value, not a section")
        inner[keys[-1]] = value
    return out


def to_table(config: Config) -> dict[str, Any]:
    """Gives the config as a nested table of plain values."""
    return dataclasses.asdict(config)


def to_toml(config: Config) -> str:
    """Gives the resolved config as TOML."""
    return tomli_w.dumps(to_table(config))


def reference() -> str:
    """Gives docs/config.md: every section and key with its default, its bounds and its help."""
    lines = ["# Every setting", "", "Made from `midhaul.config`; a test keeps it true.", ""]
    for section, kind in get_type_hints(Config).items():
        title = str(kind.__doc__).splitlines()[0].partition(": ")[2]
        lines += [
            f"## [{section}]",
            "",
            title[0].upper() + title[1:],
            "",
            "| key | default | what it is |",
            "|---|---|---|",
        ]
        for place, default in zip(dataclasses.fields(kind), dataclasses.asdict(kind()).values(), strict=True):
            shown = (
                tomli_w.dumps({"v": default}).strip().removeprefix("v = ") if not isinstance(default, dict) else "{}"
            )
            choices = f" ({', '.join(place.metadata['choices'])})" if place.metadata["choices"] else ""
            lines.append(f"| `{section}.{place.name}` | `{shown}` | {place.metadata['help']}{choices} |")
        lines.append("")
    return "\n".join(lines)


def parse_bytes(text: str) -> int:
    """Gives the bytes of a size such as 4GB, 512MiB or 1000.

    >>> parse_bytes("4GB"), parse_bytes("1.5 KiB")
    (4000000000, 1536)
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BbGgMmKkIi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = float(number) * units[unit]
    except (KeyError, ValueError):
        raise ConfigError(f"{text!r} is not a size; write for example 512MB or 4GB") from None
    if not math.isfinite(size) or size < 1:
        raise ConfigError(f"{text!r} is not a usable size; write for example 512MB or 4GB")
    return int(size)


def dealt(name: str, text: str, num_devices: int) -> list[str]:
    """Gives what a setting deals to devices: `a,b` goes round, `a*3,b*7` is for the first three and the other seven.

    Raises: ConfigError for a count that is no number, or counts that don't add up to the devices.

    >>> dealt("scheme.width_mix", "1, 0.5", 3), dealt("scheme.width_mix", "1*2,0.5*1", 3)
    (['1', '0.5', '1'], ['1', '1', '0.5'])
    """
    entries = [part.strip().partition("*") for part in text.split(",")]
    values, counts = [value.strip() for value, _, _ in entries], [count.strip() for _, sign, count in entries if sign]
    if not counts:
        return [values[device % len(values)] for device in range(num_devices)]
    if len(counts) < len(entries) or not all(count.isdigit() and int(count) for count in counts):
        raise ConfigError(f"{name} is {text!r}; write one, or A,B to go round, or A*3,B*7 with a count for each")
    if (total := sum(map(int, counts))) != num_devices:
        raise ConfigError(
            f"{name} names {total} devices and the data make {num_devices}; make the counts add up to "
            f"{num_devices}, or leave them out to go round"
        )
    return [value for value, count in zip(values, counts, strict=True) for _ in range(int(count))]


def counted(values: Iterable[str]) -> str:
    """Gives the setting that deals these out to devices, the first to the first: what `dealt` reads.

    >>> counted(["1", "1", "0.5", "1"])
    '1*2,0.5*1,1*1'
    """
    return ",".join(f"{value}*{len(list(same))}" for value, same in itertools.groupby(values))


def _section(kind: Any, section: str, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{where} has an unknown key {section}.{key}{nearest(key, fields)}")
        checked[key] = _value(hints[key], f"{section}.{key}", value, fields[key].metadata, where)
    return kind(**checked)


def _value(kind: Any, name: str, value: Any, rules: Mapping[str, Any], where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    plain = get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        wanted = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "a table"}[
            plain
        ]
        raise ConfigError(f"{where}: {name} must be {wanted}, not {value!r}")
    if rules["choices"] and value not in rules["choices"]:
        raise ConfigError(
            f"{where}: {name} is {value!r}, which is not one of its choices{nearest(value, rules['choices'])}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {name} must be a finite number, not {value!r}")
        if not rules["low"] <= value <= rules["high"] or value <= rules["above"]:
            bounds = [f"above {rules['above']:g}"] if rules["above"] > -math.inf else []
            bounds += [f"at least {rules['low']:g}"] if rules["low"] > -math.inf else []
            bounds += [f"at most {rules['high']:g}"] if rules["high"] < math.inf else []
            raise ConfigError(f"{where}: {name} is {value!r}; it must be {' and '.join(bounds)}")
    return value
