"""Imports point down the layers of the house, and what environment workers import never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # from the ground up
    ("utils",),
    ("structs",),
    ("ops", "distributed"),
    ("distributions",),
    ("envs", "models", "replays", "testing"),
    ("agents",),
    ("samplers", "algos"),
    ("runners",),
    ("recipes", "trained"),
)
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
ONLY = {"runners": {"structs", "utils", "distributed"}}  # what they work with is handed to them
OUTSIDE = {"launchers", "examples", "benchmarks", "tests"}
# What environment workers import: whole packages, or modules.
TORCH_FREE = {
    "utils",
    "structs",
    "envs",
    "testing.envs",
    "distributed.shared_arrays",
    "distributed.package",
    "distributed.processes",
    "distributed.signals",
    "distributed.zygote",
    "samplers.collector",
    "samplers.plans",
    "samplers.slots",
    "samplers.trajectories",
    "samplers.worker",
}
NEEDS_TORCH = {
    "utils.torch_tree",
    "utils.programs",
    "utils.program_builder",
    "utils.cuda_graphs",
    "utils.matrix_products",
}


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name, without "rlsurreal", and path of every module."""
    paths = {path.relative_to(root / "rlsurreal").with_suffix(""): path for path in (root / "rlsurreal").rglob("*.py")}
    return {".".join(p.parts[:-1] if p.name == "__init__" else p.parts): path for p, path in paths.items()}


def _imports(name: str, path: Path, *, at_import_time: bool) -> Iterator[str]:
    """Full names of what a module imports (perhaps of things within modules); or only what importing it imports."""
    package = ["rlsurreal", *name.split(".")][: None if path.name == "__init__.py" else -1]
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [*package[: len(package) + 1 - node.level]] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def find_faults(root: Path) -> list[str]:
    """One line for each import that the layers forbid."""
    faults, modules = [], _modules(root)
    for name, path in modules.items():
        package = name.partition(".")[0]
        if package and package not in RANK:
            faults.append(f"{name}: the package {package} has no layer; add it to LAYERS")
            continue
        for imported in _imports(name, path, at_import_time=False):
            top, _, rest = imported.partition(".")
            other = rest.partition(".")[0]
            below = [p for p in RANK if RANK[p] < RANK.get(package, 0) and p in ONLY.get(package, RANK)]
            if top in OUTSIDE or (top == "rlsurreal" and other not in (package, *below)):
                faults.append(f"{name} imports {imported}")
    for name in sorted(modules):
        if any(f"{name}.".startswith(f"{free}.") for free in TORCH_FREE) and name not in NEEDS_TORCH:
            faults += [f"{name} imports torch: {' > '.join(chain)}" for chain in _chains_to_torch(name, modules)]
    return faults


def _chains_to_torch(name: str, modules: dict[str, Path]) -> Iterator[list[str]]:
    """The first chain of imports by which importing module ``name`` imports torch, if there is one."""
    seen, pending = {name}, [[name]]
    while pending:
        chain = pending.pop()
        for imported in _imports(chain[-1], modules[chain[-1]], at_import_time=True):
            if imported.partition(".")[0] == "torch":
                yield [*chain, "torch"]
                return
            parts = imported.split(".")[1:] if imported.startswith("rlsurreal.") else []
            for end in range(len(parts) + 1):  # importing a.b.c runs a and a.b first
                inner = ".".join(parts[:end])
                if inner in modules and inner not in seen and parts:
                    seen.add(inner)
                    pending.append([*chain, inner])


def test_imports_point_down() -> None:
    assert find_faults(ROOT) == []


def test_listed_modules_exist() -> None:
    missing = (TORCH_FREE | NEEDS_TORCH) - _modules(ROOT).keys()
    assert not missing, f"{missing} are listed as free of torch or not, but gone"


def test_importing_the_workers_side_does_not_import_torch() -> None:
    names = [
        f"rlsurreal.{name}"
        for name in _modules(ROOT)
        if name in TORCH_FREE or (name.partition(".")[0] in TORCH_FREE and name not in NEEDS_TORCH)
    ]
    script = (
        f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=ROOT)


def test_what_is_outside_stays_outside_and_shadows_nothing() -> None:
    assert not [name for name in OUTSIDE if (ROOT / "rlsurreal" / name).exists()]
    for folder in ("launchers", "examples", "benchmarks"):
        assert not {path.stem for path in (ROOT / folder).glob("*.py")} & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("structs.py", "import rlsurreal.ops.losses", "structs imports rlsurreal.ops.losses"),
        ("ops/a.py", "from rlsurreal import distributed", "ops.a imports rlsurreal.distributed"),
        ("ops/a.py", "from ..agents.base import Agent", "ops.a imports rlsurreal.agents.base.Agent"),
        ("ops/__init__.py", "from ..agents import base", "ops imports rlsurreal.agents.base"),
        ("samplers/a.py", "def f():\n    from rlsurreal.algos import pg", "samplers.a imports rlsurreal.algos.pg"),
        ("agents/a.py", "if TYPE_CHECKING:\n    import rlsurreal.samplers", "agents.a imports rlsurreal.samplers"),
        ("runners/a.py", "import rlsurreal.envs.base", "runners.a imports rlsurreal.envs.base"),
        ("recipes/a.py", "import launchers.train", "recipes.a imports launchers.train"),
        ("gadgets/a.py", "", "gadgets.a: the package gadgets has no layer; add it to LAYERS"),
        ("__init__.py", "import rlsurreal.utils.a", " imports rlsurreal.utils.a"),
        ("envs/a.py", "import torch.nn", "envs.a imports torch: envs.a > torch"),
        (
            "envs/a.py",
            "try:\n    from torch import nn\nexcept OSError:\n    pass",
            "envs.a imports torch: envs.a > torch",
        ),
        ("utils/a.py", "from .torch_tree import x", "utils.a imports torch: utils.a > utils.torch_tree > torch"),
        (
            "samplers/worker.py",
            "from rlsurreal.agents.base import x",
            "samplers.worker imports torch: samplers.worker > agents.base > torch",
        ),
    ],
)
def test_faults_are_found(tmp_path: Path, module: str, text: str, fault: str) -> None:
    sound = {
        "__init__.py": "",
        "structs.py": "from rlsurreal.utils import a",
        "utils/a.py": "def f():\n    import torch\n",
        "utils/torch_tree.py": "import torch",
        "agents/base.py": "import torch\nfrom rlsurreal.utils.a import f",
        "samplers/worker.py": "if TYPE_CHECKING:\n    import torch\nimport rlsurreal.structs\nfrom . import slots",
        "samplers/slots.py": "",
        "recipes/a.py": "import rlsurreal.samplers.worker, rlsurreal.agents.base, queue",
    }
    for name, content in sound.items():
        (tmp_path / "rlsurreal" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rlsurreal" / name).write_text(content)
    assert find_faults(tmp_path) == []
    (tmp_path / "rlsurreal" / module).parent.mkdir(exist_ok=True)
    (tmp_path / "rlsurreal" / module).write_text(text)
    assert fault in find_faults(tmp_path)
