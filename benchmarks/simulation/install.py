"""The peers, each in a virtual environment of its own under build/peers, from an exact list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST_S = 1800.0  # that installing a peer may take
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "peers"

# Torch first and alone: from an index that has CUDA builds too, anything else asks for one of these.
TORCH = "torch==2.13.0"
PEERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "flower": ((TORCH,), ("flwr[simulation]==1.41.0", "ray==2.55.1", "numpy==2.4.6")),
    "pfl": ((TORCH,), ("pfl[pytorch]==0.6.0", "numpy==2.4.6")),
    "jax": (("jax==0.10.2", "jaxlib==0.10.2", "numpy==2.4.6"),),
    # The last FedJAX asks for functions that JAX has since taken out.
    "fedjax": (
        (
            "fedjax==0.0.17",
            "jax==0.4.30",
            "jaxlib==0.4.30",
            "dm-haiku==0.0.12",
            "optax==0.2.3",
            "numpy==1.26.4",
            "scipy==1.14.1",
        ),
    ),
}


def python_of(peer: str) -> Path:
    """Gives the interpreter of a peer."""
    return FOLDER / peer / "bin" / "python"


def missing(peer: str) -> str:
    """Says why a peer can't run, or nothing if it can."""
    kept = FOLDER / peer / "installed.json"
    if not kept.exists():
        return f"not installed; run `python -m benchmarks.simulation --install --peers {peer}`"
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["error"]:
        return f"can't be installed here: {found['error']}"
    if found["wanted"] != [list(part) for part in PEERS[peer]]:
        return f"other versions are installed; run `python -m benchmarks.simulation --install --peers {peer}`"
    return ""


def install(peer: str) -> str:
    """Makes a peer's environment unless it is there; gives why not, or nothing if it could."""
    kept, wanted = FOLDER / peer / "installed.json", [list(part) for part in PEERS[peer]]
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["wanted"] == wanted and not found["error"]:
            return ""
    print(f"installing {peer} ({', '.join(PEERS[peer][-1])})", file=sys.stderr, flush=True)
    (FOLDER / peer).mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)  # what is half installed isn't taken for whole, whenever this ends
    steps = [[sys.executable, "-m", "venv", str(FOLDER / peer)]]
    steps += [[str(python_of(peer)), "-m", "pip", "install", "-q", "--disable-pip-version-check", *p] for p in wanted]
    error = ""
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=MOST_S)
        except subprocess.TimeoutExpired:
            error = f"pip was not done within {MOST_S:.0f} s"
            break
        if done.returncode:
            lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
            error = (lines or done.stderr.strip().splitlines() or ["no reason given"])[-1]
            break
    kept.write_text(json.dumps({"wanted": wanted, "error": error}), encoding="utf-8")
    return error
