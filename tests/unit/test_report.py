"""Reports of made-up runs: six schemes, two seeds, and everything that may be odd about a run folder."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from midhaul import config, report
from midhaul.errors import CheckpointError, ConfigError, MidhaulError
from midhaul.message import Kind
from midhaul.report import charts
from midhaul.report.groups import read_studies
from midhaul.report.looks import KIND_COLOURS, STYLES, styles
from midhaul.report.runs import KINDS
from midhaul.schemes import SCHEMES

KIB = 1024
# scheme: last accuracy, how fast it gets there, bytes a round up and down by kind, joules a round, flash, SRAM
FAKE: dict[str, tuple[float, float, dict[str, int], dict[str, int], float, int, int]] = {
    "local": (0.78, 3.0, {}, {}, 0.9, 61 * KIB, 38 * KIB),
    "fedavg": (0.90, 6.0, {"weights": 2_400_000, "header": 9_000}, {"weights": 2_400_000, "header": 6_000},
               1.9, 61 * KIB, 41 * KIB),
    "federated_transfer": (0.925, 2.0, {"weights": 90_000, "header": 9_000}, {"weights": 90_000, "header": 6_000},
                           0.4, 61 * KIB, 14 * KIB),
    "transfer": (0.89, 1.5, {"header": 900}, {"weights": 60_000, "header": 600}, 0.2, 61 * KIB, 12 * KIB),
    "split": (0.94, 5.0, {"activations": 9_000_000, "labels": 120_000, "header": 300_000},
              {"gradients": 9_000_000, "weights": 500_000, "header": 250_000}, 5.2, 44 * KIB, 22 * KIB),
    "pooled": (0.96, 4.0, {"examples": 3_000_000, "labels": 8_000, "header": 5_000}, {}, 0.8, 32 * KIB, 70 * KIB),
}  # fmt: skip
BUFFERS = [
    {"name": "trained weights", "bytes": 16 * KIB, "first": 0, "last": 9, "offset": 0},
    {"name": "gradients, added up", "bytes": 16 * KIB, "first": 0, "last": 9, "offset": 16 * KIB},
    {"name": "input", "bytes": 3 * KIB, "first": 0, "last": 8, "offset": 36 * KIB},
    {"name": "conv1 output", "bytes": 4 * KIB, "first": 1, "last": 7, "offset": 32 * KIB},
    {"name": "fc output", "bytes": 24, "first": 4, "last": 5, "offset": 39 * KIB},
]


def make_run(
    folder: Path,
    scheme: str,
    seed: int = 0,
    /,
    *,
    rounds: int = 20,
    every: int = 1,
    devices: int = 21,
    sections: dict[str, dict[str, Any]] | None = None,
    **summary: Any,
) -> Path:
    """Writes a run folder as `midhaul run` does, with curves made by formula."""
    top, speed, up, down, joules, flash, sram = FAKE[scheme]
    top -= 0.012 * seed
    settings = {"scheme": {"name": scheme}, "run": {"seed": seed, "rounds": rounds, "evaluate_every": every},
                "data": {"name": "har"}, "link": {"radio": "cat_m1"}, **(sections or {})}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml(config.from_table(settings)), encoding="utf-8")

    def kinds(number: int) -> dict[str, dict[str, int]]:
        times = min(number, 1) if scheme in ("pooled", "transfer") else number
        return {"up": {k: v * times for k, v in up.items()}, "down": {k: v * times for k, v in down.items()}}

    def at(number: int) -> dict[str, Any]:
        due = number > 0 and (number % every == 0 or number == rounds)
        wobble = 0.008 * math.sin(2.1 * number + seed + len(scheme))
        return {
            "round": number,
            "accuracy": top - (top - 0.17) * math.exp(-number / speed) + wobble if due else None,
            "loss": 2.0 * math.exp(-number / speed) + 0.2 if due else None,
            "train_loss": 1.8 * math.exp(-number / speed) + 0.1 if number else None,
            "uplink_bytes": sum(kinds(number)["up"].values()),
            "downlink_bytes": sum(kinds(number)["down"].values()),
            "air_seconds": 0.4 * number * (sum(up.values()) > 0),
            "compute_seconds": 3.1 * number,
            "device_joules": joules * number * (1 + 0.05 * seed),
            "absent": 0,
            "kinds": kinds(number),
        }

    lines = [at(number) for number in range(rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    last = lines[-1]
    values = [min(1.0, max(0.0, last["accuracy"] + 0.09 * math.sin(1.7 * i + seed) - 0.02)) for i in range(devices)]
    counts = ("uplink_bytes", "downlink_bytes", "air_seconds", "compute_seconds", "device_joules", "kinds")
    whole = {
        "scheme": scheme,
        "title": SCHEMES[scheme].title,
        "engine": "stacked",
        "data": "har",
        "board": "stm32l4",
        "radio": "cat_m1",
        "num_devices": devices,
        "rounds": rounds,
        "seed": seed,
        "accuracy": last["accuracy"],
        "accuracy_per_device": {
            "min": min(values), "median": sorted(values)[devices // 2], "max": max(values),
            "names": [f"subject {i + 1}" for i in range(devices)], "values": values,
        },
        "loss": last["loss"],
        **{name: last[name] for name in counts},
        "device_flash_bytes": flash,
        "device_sram_bytes": sram,
        "device_flash_limit_bytes": 256 * KIB,
        "device_sram_limit_bytes": 64 * KIB,
        "buffers": BUFFERS,
        "wall_seconds": 12.5 + seed,
        "device_updates_per_s": 310.0,
        "model_sha256": f"{len(scheme):02d}{seed:02d}" * 16,
        "absent": 0,
        "refused_rows": 0,
        "tiny": {"model": "cnn1d", "parameters": 8_262, "macs": 412_032},
        "large": {"model": "resnet1d", "parameters": 481_414} if scheme not in ("local", "fedavg") else None,
        "version": "0.1.0",
        **summary,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / f"{scheme}-seed{seed}", scheme, seed) for scheme in FAKE for seed in (0, 1)]


@pytest.fixture(scope="module")
def page(six: list[Path]) -> str:
    return report.write(six, six[0].parent / "report.html").read_text(encoding="utf-8")


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Changes summary.json, or the last line of metrics.jsonl."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[-1] = json.dumps({**json.loads(lines[-1]), **changes})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def written(runs: list[Path]) -> str:
    return report.write(runs, runs[0].parent / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time; some tests are about words only."""
    monkeypatch.setattr(charts, "to_svg", lambda *_, **__: "<svg></svg>")


class Page(HTMLParser):
    """Collects ids and addresses, and fails on a tag that isn't closed in its turn."""

    VOID = frozenset(("meta", "link", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# The rows and the table


def test_rows_are_means_over_seeds_with_the_sample_deviation(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "fedavg", seed) for seed in (0, 1)]
    edit(runs[0], "summary.json", accuracy=0.9, wall_seconds=10.0, device_joules=3.0, air_seconds=1.0)
    edit(runs[1], "summary.json", accuracy=0.8, wall_seconds=20.0, device_joules=5.0, air_seconds=2.0)
    (row,) = report.rows(runs)
    assert row.accuracy == pytest.approx(0.85)
    assert row.spread == pytest.approx(0.1 / math.sqrt(2))
    assert (row.wall_seconds, row.device_joules, row.air_seconds) == (15.0, 4.0, 1.5)
    assert (row.label, row.scheme, row.data, row.seeds) == ("fedavg", "fedavg", "har", (0, 1))
    assert row.uplink_bytes == 20 * 2_409_000


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    (row,) = report.rows([make_run(tmp_path / "a", "fedavg")])
    assert row.spread is None


def test_rows_keep_the_order_given(six: list[Path]) -> None:
    assert [row.label for row in report.rows(six)] == list(FAKE)
    assert [row.label for row in report.rows(six[::-1])] == list(FAKE)[::-1]


def test_runs_of_one_scheme_with_other_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    fast = {"scheme": {"name": "fedavg", "lr": 0.1}}
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "fedavg", sections=fast)]
    assert [row.label for row in report.rows(runs)] == ["fedavg lr=0.05", "fedavg lr=0.1"]


def test_settings_that_change_no_result_make_no_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "fedavg", 1)]
    text = (runs[1] / "config.toml").read_text(encoding="utf-8")
    (runs[1] / "config.toml").write_text(text.replace("threads = 0", "threads = 2"), encoding="utf-8")
    assert len(report.rows(runs)) == 1


def test_labels_with_many_differences_are_numbered(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "fedavg", rounds=9, every=3)]
    edit(runs[1], "summary.json", board="nrf52840")
    assert [row.label for row in report.rows(runs)] == ["fedavg #1", "fedavg #2"]


def test_the_table_fits_a_terminal_and_is_aligned(six: list[Path]) -> None:
    lines = report.table(six).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "data: har"
    head, body = lines[1], lines[2:8]
    assert head.split() == ["scheme", "accuracy", "%", "up", "down", "joules", "SRAM", "flash", "air", "s", "wall", "s"]
    assert len({len(line) for line in (head, *body)}) == 1
    assert body[5].split() == ["pooled", "94.2", "+-", "0.9", "2.9M", "0B", "16.4", "70.0K", "32.0K", "8.00", "13.0"]


def test_the_table_fits_whatever_the_numbers(tmp_path: Path) -> None:
    huge: dict[str, Any] = {"air_seconds": 1.5e12, "wall_seconds": 9_999_999.0, "device_joules": 1.234567e-9}
    runs = []
    for seed, accuracy in ((0, 1.0), (1, 0.0)):
        run = make_run(tmp_path / str(seed), "federated_transfer", seed, device_sram_bytes=2**62, **huge)
        edit(run, "summary.json", scheme="a_scheme_with_a_name_that_no_table_has_room_for", accuracy=accuracy)
        runs.append(run)
    lines = report.table(runs).splitlines()
    assert max(map(len, lines)) <= 80
    assert "50.0 +- 70.7" in lines[2]
    assert lines[2].split()[0].endswith("~")
    assert lines[2].split()[-3:] == ["61.0K", "1.5e+12", "9999999"]


def test_a_table_has_a_block_for_each_data_set(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "fedavg", data="digits")]
    blocks = report.table(runs).split("\n\n")
    assert [block.splitlines()[0] for block in blocks[:2]] == ["data: har", "data: digits"]
    assert [row.label for row in report.rows(runs)] == ["fedavg", "fedavg"]


def test_an_untested_run_shows_a_dash(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg", accuracy=None, accuracy_per_device=None)
    assert report.table([run]).splitlines()[2].split()[:2] == ["fedavg", "-"]


# The page


def test_the_page_is_well_formed_and_fetches_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert not parsed.tags & {"script", "img", "iframe", "object", "audio", "video"}
    assert {link for link in parsed.links if not link.startswith("#")} == {"data:,"}
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_every_reference_has_one(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    used = {link[1:] for link in parsed.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert used
    assert used <= set(parsed.ids)


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    pages = []
    for place in ("here", "elsewhere/below"):
        runs = [make_run(tmp_path / place / "split", "split")]
        pages.append(report.write(runs, tmp_path / place / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_only_the_best_is_marked(page: str) -> None:
    assert page.count('class="best"') == 1
    row = next(line for line in re.findall(r"<tr>.*?</tr>", page) if 'class="best"' in line)
    assert "pooled" in row
    assert "94.2 ± 0.9" in row


def test_what_was_run_is_told_in_words(page: str) -> None:
    for words in (
        "<h1>6 schemes on har</h1>",
        "har, on 21 devices",
        "Cortex-M4F at 80 MHz, with 256 KiB of flash",
        "cnn1d: 8,262 parameters, 412,032 multiplications",
        "resnet1d, 481,414 parameters",
        "LTE-M cellular (cat_m1), 180 kbit/s up and 300 kbit/s down",
        "20 rounds",
        "seeds 0 and 1",
        "side by side (engine stacked)",
    ):
        assert words in page, words


@pytest.mark.usefixtures("no_charts")
def test_a_learning_rate_that_falls_is_told(tmp_path: Path) -> None:
    step = {"name": "fedavg", "lr_schedule": "step", "lr_milestones": "5,10", "lr_gamma": 0.5, "lr_warmup": 2}
    runs = [
        make_run(tmp_path / "a", "fedavg", sections={"scheme": step}),
        make_run(tmp_path / "b", "split", sections={"scheme": {"name": "split", "lr_schedule": "cosine"}}),
        make_run(tmp_path / "c", "local"),
    ]
    text = written(runs)
    assert "rate of 0.05 rises to it in the first 2 rounds and then is multiplied by 0.5 after rounds 5 and 10." in text
    assert "The devices&#x27; learning rate of 0.05 falls along a cosine to nothing." in text
    assert text.count("learning rate of") == 2


def test_the_findings_name_the_best_and_the_cheapest(page: str) -> None:
    assert "Most accurate is pooled with 94.2 ± 0.9 %, for 2.9 MiB and 16.4 J." in page
    assert "Fewest bytes crossed the link with local (0 B, 77.1 ± 1.4 %)." in page
    assert "The devices spent least with transfer (4.1 J, 88.6 ± 0.3 %)." in page


def test_schemes_that_send_labels_or_examples_are_named(page: str) -> None:
    assert "Raw examples left the devices with pooled." in page
    assert "Labels left the devices with split and pooled." in page
    assert "With local, fedavg, federated_transfer and transfer neither did." in page


def test_every_chart_has_units_and_the_colour_of_every_scheme(page: str) -> None:
    charts = dict(re.findall(r'<svg [^>]*aria-label="([^"]*)">(.*?)</svg>', page, flags=re.DOTALL))
    assert len(charts) == 11
    for words in (
        "rounds",
        "test accuracy (%)",
        "bytes on the air",
        "energy of all devices",
        "SRAM that a device needs",
        "flash of one device",
        "share",
    ):
        assert any(words in svg for svg in charts.values()), words
    for title, svg in charts.items():
        colours = KIND_COLOURS if title.startswith("Kinds") else {name: STYLES[name].colour for name in FAKE}
        if title.endswith("sent up"):
            colours = {kind: colours[kind] for kind in ("weights", "activations", "labels", "examples", "header")}
        elif title.endswith("sent down"):
            colours = {kind: colours[kind] for kind in ("weights", "gradients", "header")}
        for name, colour in colours.items():
            assert colour.lower() in svg, (title, name)


def test_a_scheme_without_bytes_is_a_level_line_on_a_log_axis(page: str) -> None:
    assert page.count(">local: 0 bytes<") == 1
    assert "A level line is a scheme that spent nothing" in page


def test_no_bytes_at_all_is_said_instead_of_drawn(tmp_path: Path) -> None:
    text = written([make_run(tmp_path / "a", "local")])
    assert "Accuracy over bytes is not drawn" in text
    assert "Nothing crossed the link." in text
    assert "bytes on the air" not in text


def test_what_does_not_fit_is_marked(page: str) -> None:
    assert "70.0 KiB, 6.0 KiB over" in page
    assert page.count("109 %, too big") == 1


def test_memory_over_three_decades_is_on_a_log_axis(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "local", device_sram_bytes=200 * KIB * KIB)]
    text = written(runs)
    assert "SRAM of one device (log); red" in text
    assert "flash of one device; red" in text


def test_only_one_scheme_alone_shows_its_arena(tmp_path: Path, page: str) -> None:
    alone = written([make_run(tmp_path / "a", "fedavg")])
    assert "<h1>Federated averaging on har</h1>" in alone
    assert ">gradients, added up, 16.0 KiB<" in alone
    assert "The 5 buffers" in alone
    assert "The arena of the device" not in page


def test_what_happened_to_devices_on_firmware_is_a_table(tmp_path: Path, page: str) -> None:
    """A line a device, how often each thing happened, and the last that went wrong; no table without such devices."""
    assert "Devices on firmware" not in page
    run = make_run(tmp_path / "run", "fedavg")
    at = {"device": 3, "address": "qemu:cortex-m4"}
    events = [
        {**at, "round": 0, "what": "connected", "reason": ""},
        {**at, "round": 2, "what": "lost", "reason": "the stream <closed>"},
        {**at, "round": 3, "what": "rejoined", "reason": ""},
        {"device": 0, "address": "host:", "round": 0, "what": "connected", "reason": ""},
    ]
    sizes = {"arena_peak_bytes": 8 * KIB, "arena_bytes": 32 * KIB, "stack_peak_bytes": KIB, "store_used_bytes": 0}
    edit(run, "summary.json", device_events=events, device_stats=[{**at, **sizes}])
    shown = written([run]).partition("on firmware</h2>")[2].partition("</table>")[0]
    lines = [re.sub("<[^>]*>", " ", line).split() for line in re.findall("<tr>(.*?)</tr>", shown)]
    assert [" ".join(line) for line in lines[1:]] == [
        "fedavg 0 0 host: 0 0 0 0",
        "fedavg 0 3 qemu:cortex-m4 8.0 KiB 25 % 1.0 KiB 1 0 0 1 round 2: the stream &lt;closed&gt;",
    ]


@pytest.mark.usefixtures("no_charts")
def test_a_line_a_gateway_says_what_its_devices_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    assert "Gateways</h2>" not in written([run])
    counts = {"answers": 1200, "reconnections": 1, "bytes_up": 3 * KIB, "bytes_down": 2 * KIB, "refused": {"late": 2}}
    row = {"name": "north", "devices": [0, 1], "holds": "2 devices run the C runtime", **counts}
    edit(run, "summary.json", gateways=[row])
    shown = written([run]).partition("Gateways</h2>")[2].partition("</table>")[0]
    line = re.findall("<tr>(.*?)</tr>", shown)[1]
    told = "fedavg north 2 2 devices run the C runtime 1,200 1 3.0 KiB 2.0 KiB 2 late"
    assert " ".join(re.sub("<[^>]*>", " ", line).split()) == told
    for odd in ({"name": "a\nb"}, {"devices": 2}, {"answers": -1}, {"answers": True}, {"refused": {"late": "2"}}):
        edit(run, "summary.json", gateways=[{**row, **odd}])
        with pytest.raises(CheckpointError, match="'gateways' aren't as a run writes them"):
            written([run])
    edit(run, "summary.json", gateways=7)
    with pytest.raises(CheckpointError, match="'gateways' aren't"):
        written([run])


def test_each_data_set_has_its_own_best(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{data}-{scheme}", scheme, data=data)
        for data in ("har", "digits")
        for scheme in ("local", "split")
    ]
    text = written(runs)
    assert text.count('class="best"') == 2
    assert "<h2>Data set: har</h2>" in text
    assert "<h2>Data set: digits</h2>" in text
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_rounds_that_were_not_tested_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg", rounds=20, every=8)
    (study,) = read_studies([run])
    points = study.groups[0].curve(lambda r: r.device_joules)
    assert [point.x for point in points] == pytest.approx([1.9 * 8, 1.9 * 16, 1.9 * 20])


def test_seeds_are_averaged_at_the_rounds_that_all_have(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "fedavg", seed, rounds=2) for seed in (0, 1)]
    edit(runs[0], "metrics.jsonl", accuracy=0.5)
    edit(runs[1], "metrics.jsonl", accuracy=0.7)
    lines = (runs[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "accuracy": None})
    (runs[1] / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (study,) = read_studies(runs)
    (point,) = study.groups[0].curve(lambda r: float(r.round))
    assert (point.x, point.low, point.high) == (2.0, 0.5, 0.7)
    assert point.accuracy == pytest.approx(0.6)


def test_one_round_and_no_test_at_all_still_make_a_page(tmp_path: Path) -> None:
    single = make_run(tmp_path / "a", "fedavg", rounds=1)
    assert "It gets 29.0 % of the test rows right" in written([single])
    untested = make_run(tmp_path / "b", "fedavg", every=50, accuracy=None, accuracy_per_device=None)
    edit(untested, "metrics.jsonl", accuracy=None)
    text = written([untested])
    assert "No round of these runs was tested." in text
    assert "It was not tested" in text


def test_many_devices_are_thinned_out_by_rank(tmp_path: Path) -> None:
    text = written([make_run(tmp_path / "a", "fedavg", devices=5000)])
    strip = re.search(r'id="s1-spread-strip-0">(.*?)</g>\s*</g>', text, flags=re.DOTALL)
    assert strip is not None
    assert strip[1].count("<use") == charts.STRIP_DEVICES
    assert "5,000 devices" in text


@pytest.mark.usefixtures("no_charts")
def test_devices_without_test_rows_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg", devices=3)
    edit(run, "summary.json", accuracy_per_device={"names": ["a", "b", "c"], "values": [0.8, None, 0.4]})
    text = written([run])
    assert '<td>40.0</td><td>60.0</td><td>80.0</td><td class="t">c</td>' in text


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    run = make_run(
        tmp_path / "a & b",
        "fedavg",
        tiny={"model": bad, "parameters": 1, "macs": 1},
        large={"model": bad, "parameters": 1},
        buffers=[{**BUFFERS[0], "name": bad}],
    )
    edit(
        run,
        "summary.json",
        **dict.fromkeys(("scheme", "title", "data", "board", "engine", "version", "model_sha256"), bad),
    )
    edit(run, "summary.json", accuracy_per_device={"names": [bad], "values": [0.5]})
    with (run / "config.toml").open("a", encoding="utf-8") as file:
        file.write(f'# "{bad}"\n')
    text = written([run])
    assert bad not in text
    assert text.count("&lt;script&gt;") >= 12
    assert "midhaul run &#x27;a &amp; b/config.toml&#x27; --out &#x27;again/a &amp; b&#x27;" in text
    assert "script" not in Page(text).tags


def test_names_that_mean_something_to_a_typesetter_are_drawn_as_they_are(tmp_path: Path) -> None:
    text = written([make_run(tmp_path / "a", "fedavg", scheme="$x^2$ 方案"), make_run(tmp_path / "b", "local")])
    assert text.count(">$x^2$ 方案<") >= 5


@pytest.mark.usefixtures("no_charts")
def test_the_settings_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "fedavg"), make_run(tmp_path / "b", "split", rounds=30)]
    text = written(runs)
    assert '<th class="t">run.rounds</th>' in text
    assert '<th class="t">scheme.lr</th>' not in text
    assert text.count("config.toml of seed 0") == 2


@pytest.mark.usefixtures("no_charts")
def test_the_commands_name_the_folders_below_what_they_share(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / data / "fedavg", "fedavg", data=data) for data in ("har", "digits")]
    text = written(runs)
    assert "midhaul run har/fedavg/config.toml --out again/har/fedavg\n" in text
    assert "midhaul report again/har/fedavg again/digits/fedavg --out again.html" in text


def test_writing_leaves_the_callers_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    run = make_run(tmp_path / "a", "fedavg")
    before = written([run])
    with mpl.rc_context({"font.size": 30.0, "axes.grid": False, "svg.hashsalt": "other"}):
        assert written([run]) == before
        assert (mpl.rcParams["font.size"], mpl.rcParams["svg.hashsalt"]) == (30.0, "other")


# Styles


def test_every_scheme_has_a_look_of_its_own() -> None:
    assert set(SCHEMES) <= set(STYLES)
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
    assert len({(style.marker, style.dash) for style in STYLES.values()}) == len(STYLES)


def test_a_scheme_keeps_its_look_and_its_variants_get_others(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "split"), make_run(tmp_path / "b", "fedavg")]
    runs.append(make_run(tmp_path / "c", "fedavg", sections={"scheme": {"name": "fedavg", "lr": 0.1}}))
    runs.append(make_run(tmp_path / "d", "local", scheme="mine"))
    looks = styles(read_studies(runs)[0].groups)
    assert looks["split"] == STYLES["split"]
    assert looks["fedavg lr=0.05"] == STYLES["fedavg"]
    assert len(set(looks.values())) == 4


def test_kinds_are_those_of_messages() -> None:
    assert set(KINDS) == {*(kind.value for kind in Kind), "header"} == set(KIND_COLOURS)


# Damaged input


def refusal(runs: list[Path]) -> str:
    with pytest.raises(CheckpointError) as caught:
        report.rows(runs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accuracy": "0.9"}, "'accuracy' is '0.9', not a number from 0 to 1, or null"),
        ({"accuracy": 1.5}, "'accuracy'"),
        ({"accuracy": True}, "'accuracy'"),
        ({"uplink_bytes": 1.5}, "'uplink_bytes' is 1.5, not a whole number"),
        ({"uplink_bytes": -1}, "'uplink_bytes'"),
        ({"uplink_bytes": 7}, "don't end alike"),
        ({"rounds": 21}, "don't end alike"),
        ({"device_joules": None}, "'device_joules' is None, not a finite number"),
        ({"air_seconds": 10**400}, "'air_seconds'"),
        ({"scheme": 3}, "'scheme' is 3, not a line of text"),
        ({"scheme": "a\nb"}, "'scheme'"),
        ({"seed": "x" * 200}, "'seed'"),
        ({"tiny": []}, "'tiny' does not hold a JSON object"),
        ({"tiny": {"model": "mlp"}}, "no 'parameters'"),
        ({"kinds": {"up": {}, "down": {}}}, "add up to 0, not to 48180000"),
        ({"kinds": {"up": {"weight": 1}, "down": {}}}, "unknown kind 'weight'"),
        ({"kinds": {"up": {}}}, "no 'down'"),
        ({"buffers": {}}, "'buffers'"),
        (
            {"device_events": [{"round": 1, "device": 0, "address": "a", "what": "odd", "reason": ""}]},
            "'what' is 'odd'",
        ),
        ({"buffers": [{"name": "x", "bytes": 1, "offset": 0, "first": 3, "last": 2}]}, "'last' is 2"),
        ({"accuracy_per_device": {"names": ["a"], "values": []}}, "'values'"),
        ({"accuracy_per_device": {"names": "a", "values": [1]}}, "'names'"),
        ({"accuracy_per_device": {"names": ["a"], "values": [2.0]}}, "'a'"),
    ],
)
def test_a_damaged_summary_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    edit(run, "summary.json", **changes)
    text = refusal([run])
    assert named in text
    assert "summary.json" in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"round": 3}, "'round' is 3, not beyond the line before, 19"),
        ({"uplink_bytes": 5}, "'uplink_bytes' is 5, not beyond the line before"),
        ({"device_joules": "1"}, "'device_joules'"),
        ({"loss": "high"}, "'loss'"),
        ({"accuracy": -0.1}, "'accuracy'"),
    ],
)
def test_a_damaged_round_is_refused_with_its_line(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    edit(run, "metrics.jsonl", **changes)
    text = refusal([run])
    assert named in text
    assert "metrics.jsonl line 21" in text


@pytest.mark.parametrize("rest", ['{"round": 21, "acc', "[1]", '{"round": NaN}', "[" * 100_000, "null"])
def test_a_torn_line_is_refused(tmp_path: Path, rest: str) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(rest)
    assert "metrics.jsonl line 22" in refusal([run])


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_run_without_its_files_has_not_finished(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    (run / name).unlink()
    assert f"has no {name}" in refusal([run])
    (run / name).write_bytes(b"\xff\xfe\x00")
    assert "can't be read" in refusal([run])


def test_an_empty_record_of_rounds_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    assert "has no rounds" in refusal([run])


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    (run / "config.toml").write_text("[run", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        report.rows([run])


def test_no_runs_no_folder_and_a_run_given_twice_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    assert "at least one run" in refusal([])
    assert "no run folder" in refusal([tmp_path / "none"])
    assert "same scheme, settings and seed 0" in refusal([run, run])


@pytest.mark.usefixtures("no_charts")
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "fedavg")
    with pytest.raises(MidhaulError, match="can't be written"):
        report.write([run], run / "summary.json" / "report.html")
    with pytest.raises(MidhaulError, match="can't be written"):
        report.write([run], run)


def test_one_round_and_next_to_nothing_spent_can_still_be_drawn() -> None:
    """Two schemes at almost the same few joules: no decade falls within the axis."""
    from matplotlib.figure import Figure

    from midhaul.report.charts import _log_x

    for low, high in ((3.3e-3, 3.4e-3), (1.0, 1.0), (0.7, 0.72)):
        for over in ("joules", "bytes"):
            _log_x(Figure().add_subplot(), low, high, over)


# What each of the two models gained


def test_both_models_gains_are_shown_where_both_were_tested(tmp_path: Path) -> None:
    start = {"accuracy": 0.4, "large_accuracy": 0.6}
    runs = [make_run(tmp_path / str(s), "transfer", s, start=start, large_accuracy=0.7 + 0.1 * s) for s in (0, 1)]
    for run in runs:
        edit(run, "summary.json", accuracy=0.5)
    (row,) = report.rows(runs)
    assert row.gains is not None
    assert row.gains.tiny == pytest.approx(0.1)
    assert row.gains.large == pytest.approx(0.15)
    plain = make_run(tmp_path / "plain", "fedavg")
    lines = report.table([*runs, plain]).split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["scheme", "transfer"]
    assert lines[1].split()[1:] == ["40.0", "50.0", "+10.0", "60.0", "75.0", "+15.0"]
    text = written([*runs, plain])
    assert text.count("What each model gained") == 1
    assert "+15.0" in text
    assert "What each model gained" not in written([plain])


@pytest.mark.parametrize("start", [{"accuracy": 1.5, "large_accuracy": 0.6}, {"accuracy": 0.4}, 3])
def test_a_start_that_is_no_pair_of_shares_is_refused(start: object, tmp_path: Path) -> None:
    assert "start" in refusal([make_run(tmp_path / "a", "fedavg", start=start)])


KINDS_OF_DEVICES: list[dict[str, Any]] = [
    {
        "num_devices": num, "board": board, "radio": "ble", "width": width, "cut": "", "rank": 0, "model": "",
        "parameters": 1000, "flash_bytes": 20 * KIB, "sram_bytes": 30 * KIB,
        "flash_limit_bytes": 256 * KIB, "sram_limit_bytes": 64 * KIB,
    }
    for num, board, width in ((4, "stm32l4", 0.25), (2, "rpi4", 1.0))
]  # fmt: skip


def test_devices_that_differ_are_shown_by_group(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "fedavg", 0, board="stm32l4, rpi4", groups=KINDS_OF_DEVICES)
    text = report.write([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "width 0.25" in text
    assert "Devices that differ" in text
    assert "(4 devices) and" in text
    alike = make_run(tmp_path / "b", "fedavg", 0, groups=KINDS_OF_DEVICES[:1])
    assert "Devices that differ" not in report.write([alike], tmp_path / "b.html").read_text(encoding="utf-8")
    broken = make_run(tmp_path / "c", "fedavg", 0, groups=[{**KINDS_OF_DEVICES[0], "width": "wide"}])
    with pytest.raises(CheckpointError, match="'width' is 'wide'"):
        report.write([broken], tmp_path / "c.html")


SPENT = {
    "names": ["a", "b", "c"],
    "joules": {"compute": [1.0, 2.0, 0.5], "transmit": [4.0, 1.0, 0.5], "receive": [0.0] * 3, "idle": [0.1] * 3},
    "seconds": {"compute": [1.0, 2.0, 1.0], "transmit": [2.0, 3.0, 1.0], "receive": [0.0] * 3, "idle": [5.0, 0, 9.0]},
    "gone": [None, 3, None],
}


def test_where_joules_went_and_what_an_accuracy_cost_is_told(tmp_path: Path) -> None:
    costs = {"round": 4, "seconds": 90.0, "joules": 2.5, "uplink_bytes": 1024, "downlink_bytes": 1024}
    reached = {"accuracy": 0.6, **costs}
    missed = {"accuracy": 0.6, **dict.fromkeys(costs)}
    folders = [
        make_run(tmp_path / f"seed{seed}", "fedavg", seed, spent=SPENT, target=target)
        for seed, target in enumerate((reached, missed))
    ]
    lines = report.table(folders).splitlines()
    assert "fedavg  60 %   1 of 2       4     90.0    2.50   2.0K" in lines
    told = report.write(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (
        "What the accuracy cost",
        "Where joules and seconds went",
        "59 % of 9.3 J went into sending.",
        "since round 3",
    ):
        assert text in told
    assert told.count('aria-label="Where the') == 2
    alone = report.table(folders[1:]).splitlines()
    assert "fedavg  60 %   0 of 1       -        -       -      -" in alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"spent": {**SPENT, "gone": [None]}},
        {"spent": {**SPENT, "joules": {**SPENT["joules"], "idle": [-1.0, 0.0, 0.0]}}},  # type: ignore[dict-item]
        {"spent": "all"},
        {"target": {"accuracy": 2.0}},
        {
            "target": {
                "accuracy": 0.5,
                "round": 1,
                "seconds": "long",
                "joules": 1,
                "uplink_bytes": 1,
                "downlink_bytes": 1,
            }
        },
    ],
)
def test_what_no_run_writes_of_its_costs_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "fedavg", 0, **wrong)
    with pytest.raises(CheckpointError, match="isn't as a run writes it"):
        report.table([folder])
