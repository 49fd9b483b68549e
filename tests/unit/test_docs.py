"""What the documents say is run: README's Python, its commands, the examples, and every link."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from midhaul import config
from midhaul.arguments import parser
from midhaul.cli import main
from midhaul.kit import PROPERTIES
from midhaul.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_readmes_python_prints_what_it_says() -> None:
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    space: dict[str, object] = {}
    for code, says in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "README.md", "exec"), space)
        assert said.getvalue() == says


def test_the_readmes_commands_are_ones() -> None:
    fenced = "".join(re.findall(r"```\n(.*?)```", README, re.S))
    lines = [line.partition("#")[0] for line in fenced.splitlines() if line.startswith("midhaul ")]
    commands = [part.split()[1:] for line in lines for part in line.split(";") if part.strip()]
    assert len(commands) >= 6
    for command in commands:
        parser().parse_args(command)


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)) - {"commands"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config.from_table(tomllib.loads(path.read_text()))


def test_the_demo_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--set", "run.rounds=1", "--set", "large.epochs=1", "--set", "scheme.distill_epochs=1"]
    demo = ["compare", str(ROOT / "examples" / "demo.toml"), "--schemes", "local,federated_transfer"]
    assert main([*demo, *quick, "--out", str(tmp_path)]) == 0
    assert "federated_transfer" in capsys.readouterr().out


def test_every_scheme_is_documented() -> None:
    schemes, papers = (ROOT / "docs" / "schemes.md").read_text(), (ROOT / "PAPERS.md").read_text()
    for name in SCHEMES:
        assert f"`{name}`" in schemes, name
        if name not in ("local", "pooled"):
            assert f"`{name}`" in papers, name


def test_the_changelog_knows_this_version() -> None:
    import midhaul

    assert f"## {midhaul.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_names_this_machine() -> None:
    words = ("/work/", "/tmp/", "claude", "localhost:")
    for path in [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "examples").iterdir(), ROOT / "Makefile"]:
        for word in words:
            assert word not in path.read_text().lower(), f"{path.name} has {word}"


def test_what_the_table_says_that_a_scheme_admits_is_so() -> None:
    rows = [line for line in (ROOT / "docs" / "schemes.md").read_text().splitlines() if line.startswith("| ")]
    head = next(place for place, line in enumerate(rows) if line.startswith("| schemes | "))
    properties = [cell.strip() for cell in rows[head].split("|")[2:-1]]
    assert tuple(properties) == PROPERTIES
    told = {}
    for line in rows[head + 1 :]:
        names, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        if len(cells) != len(properties) or set(cells) - {"yes", ""}:
            break
        admitted = {p for p, cell in zip(properties, cells, strict=True) if cell}
        told |= {name: admitted for name in re.findall(r"`(\w+)`", names)}
    assert told
    assert told == {name: set(SCHEMES[name].admits) for name in told}
