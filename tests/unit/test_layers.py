"""Imports go one way: a module may import only what lies below it, and siblings never import each other."""

import ast
from pathlib import Path

import midhaul

ROOT = Path(midhaul.__file__).parent
LAYERS = (
    {"errors"},
    {"tree", "units", "rng", "config", "net", "hub", "sentences", "tracing"},
    {"message", "schedule", "hardware", "goals", "logs", "scalars"},
    {"data", "models", "devices", "link", "privacy"},
    {"program"},
    {"rules", "directions", "selection", "choices", "curves"},
    {"ops", "budget", "fleet"},
    {"server"},
    {"hints", "sparse"},
    {"kit", "checkpoint", "selfsupervised"},
    {"distil", "halves", "lora"},
    {"schemes", "runtime", "variants"},
    {"plant"},
    {"offers", "changes"},
    {"replan"},
    {"train", "export", "report", "size", "provision", "inference"},
    {"plan", "federation"},
    {"apps"},
    {"arguments", "terminal"},
    {"cli"},
)
RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def imports_of(path: Path) -> set[str]:
    """Gives the midhaul modules that a file imports, by the first part of their name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import; write the whole name"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "midhaul" else {node.module}
            )
    return {name.split(".")[1] for name in found if name.startswith("midhaul.")} - {"__version__"}


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        assert own in RANK, f"{own} has no layer; give it one here and in docs/architecture.md"
        for other in imports_of(path):
            if other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_one_scheme_file_never_imports_another() -> None:
    for path in sorted((ROOT / "schemes").glob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) < 150, f"{path.name} has 150 lines or more"
        if path.name != "__init__.py":
            assert "midhaul.schemes" not in text, f"{path.name} imports a sibling"
            assert "midhaul.runtime" not in text, f"{path.name} knows an engine"


def test_only_the_command_line_prints() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        if path.name in ("cli.py", "terminal.py"):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_nothing_is_pickled() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        for word in ("import pickle", " torch.save(", " torch.load(", "allow_pickle=True"):
            assert word not in text, f"{path.name} has {word}"
