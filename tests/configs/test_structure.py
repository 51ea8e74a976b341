"""Which room may import which, what is packaged, and what `import lit_posttrain` costs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lit_posttrain

PACKAGE = Path(lit_posttrain.__file__).parent
ROOT = PACKAGE.parent
# Imports go one way: a room may import those before it.
ROOMS = (
    "files",
    "functional",
    "tasks",
    "batching",
    "models",
    "data",
    "rewards",
    "rollout",
    "modules",
    "algos",
    "callbacks",
    "reports",
    "app",
)
ONLY_TORCH = {"functional", "batching"}
CONFIGURATION = {"hydra", "omegaconf"}


def imports(source: str, module: str) -> set[str]:
    """Absolute dotted names of all that a module imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[str]:
    """Every module of the package that stands in a room, as a path below it."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if len(path.parts) > 1)


def violations(source: str, room: str, module: str) -> list[str]:
    """What a module of a room imports and should not."""
    wrong = []
    for name in sorted(imports(source, module)):
        top, *rest = name.split(".")
        if top == "lit_posttrain":
            if not rest or rest[0] not in ROOMS[: ROOMS.index(room) + 1]:
                wrong.append(name)
        elif room in ONLY_TORCH:
            if top != "torch" and top not in sys.stdlib_module_names:
                wrong.append(name)
        elif top in CONFIGURATION and room != "app":
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", modules())
def test_module_imports_what_its_room_may(path):
    module = ".".join(["lit_posttrain", *Path(path).with_suffix("").parts])
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), Path(path).parts[0], module) == []


@pytest.mark.parametrize(
    ("room", "line", "name"),
    [
        ("functional", "from lit_posttrain.batching import Rollout", "lit_posttrain.batching.Rollout"),
        ("batching", "import transformers", "transformers"),
        ("models", "def f():\n    from lit_posttrain.data import load_rows", "lit_posttrain.data.load_rows"),
        ("rollout", "from ..algos.grpo import GRPO", "lit_posttrain.algos.grpo.GRPO"),
        ("algos", "from omegaconf import DictConfig", "omegaconf.DictConfig"),
        ("callbacks", "import lit_posttrain.app.run as run", "lit_posttrain.app.run"),
        ("data", "from lit_posttrain import GRPO", "lit_posttrain.GRPO"),
        ("batching", "from lit_posttrain.models import loading", "lit_posttrain.models.loading"),
        ("reports", "from hydra.core.utils import JobReturn", "hydra.core.utils.JobReturn"),
    ],
)
def test_the_check_notices(room, line, name):
    assert violations(line, room, f"lit_posttrain.{room}.module") == [name]


def test_the_check_lets_pass():
    source = "import math\nfrom torch import Tensor\nfrom .kl import kl_penalty\nimport lit_posttrain.functional.kl"
    assert violations(source, "functional", "lit_posttrain.functional.masking") == []


def test_packaged_are_the_folders_with_modules():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert set(packaged) == {".".join(["lit_posttrain", *f.parts]) for f in folders} | {"lit_posttrain.conf"}
    assert [str(f) for f in folders if not (PACKAGE / f / "__init__.py").is_file()] == []


def test_import_is_free():
    heavy = ["torch", "hydra", "wandb", "transformers", "lightning"]
    program = f"import sys, lit_posttrain; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(set(lit_posttrain.__all__) - {"__version__"}))
def test_public_name_resolves(name):
    assert getattr(lit_posttrain, name).__name__ == name


def test_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lit_posttrain.__version__ == project["version"]


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'GPRO'"):
        lit_posttrain.GPRO  # noqa: B018


def test_type_checkers_see_the_public_names():
    """The imports for type checkers name the same places as those on first use."""
    seen = {name for name in imports((PACKAGE / "__init__.py").read_text(), "lit_posttrain") if "lit_posttrain" in name}
    assert seen == {f"{home}.{name}" for name, home in lit_posttrain._HOME.items()}
    assert set(lit_posttrain.__all__) == {*lit_posttrain._HOME, "__version__"}
