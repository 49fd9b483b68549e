"""What a command imports: help, lists and the refusal of a bad setting wait for no tensor library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import midhaul

OWN = {**os.environ, "PYTHONPATH": str(Path(midhaul.__file__).parents[1])}  # these sources, whatever is installed
SLOW = ("torch", "scipy", "sklearn", "matplotlib", "transformers", "cryptography", "torch._dynamo")
ASK = """
import json, sys
from midhaul.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:  # argparse leaves so after --help and --version
    code = ended.code or 0
print(json.dumps([code, list(sys.modules)]))
"""


def asked(*arguments: str) -> tuple[int, set[str]]:
    """Gives the exit code of a command in a fresh interpreter, and which of the slow libraries it imported."""
    command = [sys.executable, "-c", ASK, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=OWN, check=True)
    code, modules = json.loads(ran.stdout.splitlines()[-1])
    return code, set(SLOW) & set(modules)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["boards"], ["boards", "--radios"], ["data", "list"]]
)
def test_what_only_tells_imports_nothing_slow(arguments: list[str]) -> None:
    assert asked(*arguments) == (0, set())


def test_a_bad_config_is_refused_before_anything_slow_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[run]\nroundz = 3\n")
    assert asked("run", str(config)) == (2, set())
    assert asked("run", str(tmp_path / "none.toml")) == (2, set())
    assert asked("compare", str(config), "--schemes", "fedavg") == (2, set())


def test_a_federations_standing_and_keys_need_no_tensor_library(tmp_path: Path) -> None:
    assert asked("status", "127.0.0.1:1") == (2, {"cryptography"})
    assert asked("certs", str(tmp_path), "--days", "0") == (2, {"cryptography"})


def test_a_run_needs_no_statistics_and_no_plots() -> None:
    code = "import sys, midhaul.train; assert not {*sys.modules} & {'scipy', 'sklearn', 'matplotlib', 'torch._dynamo'}"
    subprocess.run([sys.executable, "-c", code], env=OWN, check=True)


def test_the_list_of_schemes_needs_the_tensor_library_alone() -> None:
    assert asked("schemes") == (0, {"torch"})


def test_counting_what_layers_cost_needs_no_compiler() -> None:
    code = """
import sys
from midhaul.models import count, tiny
assert count.totals(tiny.build("cnn", (1, 8, 8), 10), (1, 8, 8)).macs > 0
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env=OWN, check=True)
