"""How easy the house is to live in, in numbers: depth of classes, what a step of GRPO runs, lines of code.

python scripts/measure_house.py            # prints every number; exit status 1 if one is beyond its limit
"""

import ast
import inspect
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lit_posttrain"
INNER_ROOMS = ("modules", "algos", "rollout", "batching")
ALGORITHMS = ("GRPO", "PPO", "RLOO", "ReinforcePlusPlus", "SFT", "DPO", "RewardModel")
MOST = {
    "own classes up to LightningModule": 3,
    "bases with one child": 0,
    "lines of the longest class": 300,
    "lines of the longest function": 50,
    "functions of a step": 100,
    "files of a step": 26,
    "functions of a step in the inner rooms": 60,
    "files of a step in the inner rooms": 12,
    "files of the largest folder": 14,
    "arguments of GRPO": 23,
    "arguments of PPO": 25,
    "arguments of RLOO": 13,
    "lines of algos/grpo.py": 120,
    "lines of algos/ppo.py": 190,
    "lines of algos/dpo.py": 190,
    "lines of algos/rloo.py": 60,
    "lines of algos/reinforce_pp.py": 60,
    'arguments documented as "see X"': 0,
    "citations of AT-numbers": 0,
    "command line outside app/": 0,
}
GROUPS = "data|model|algo|trainer|optim|reward|scheduler|callbacks|stage"
OPTION = re.compile(rf"`(?:[a-z_]+/)?(?:{GROUPS})[./=][\w./=<>*-]+")


def code_lines(source: str) -> set[int]:
    """The numbers of the lines with code: no docstrings, comments, blank lines or imports."""
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                left_out |= set(range(first.lineno, first.end_lineno + 1))
    tokens = tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found: set[int] = set()
    for token in tokens:
        if token.type not in empty:
            found |= set(range(token.start[0], token.end[0] + 1))
    return found - left_out


def sizes() -> tuple[dict[str, int], Counter[str]]:
    """Lines of code of every file, and of every class and function by its name."""
    files: dict[str, int] = {}
    kinds: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = code_lines(source)
        name = path.relative_to(PACKAGE).as_posix()
        files[name] = len(lines)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                length = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                kinds[f"{kind} {name}:{node.name}"] = length
    return files, kinds


def classes() -> dict[str, Any]:
    """Every LightningModule of the package, by its name."""
    import lightning

    import lit_posttrain

    for name in ALGORITHMS:
        getattr(lit_posttrain, name)
    found: dict[str, Any] = {}
    todo = [lightning.LightningModule]
    while todo:
        for child in todo.pop().__subclasses__():
            todo.append(child)
            if child.__module__.startswith("lit_posttrain"):
                found[child.__name__] = child
    return found


def own_classes(algorithm: type) -> list[str]:
    """Those of the package from an algorithm up, its mixins among them."""
    return [each.__name__ for each in algorithm.__mro__ if each.__module__.startswith("lit_posttrain")]


def run_a_step() -> Counter[str]:
    """The named functions of the package that one optimiser step of GRPO calls, its rollout included, by their file."""
    import lightning as L

    from lit_posttrain import GRPO, PromptDataModule, Sampling

    called: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            called.add((Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_qualname))

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            sys.setprofile(profile if trainer.global_step == 2 else None)

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    rows = [{"prompt": f"grid {i}"} for i in range(8)]
    module = GRPO("tiny", reward, group_size=4, sampling=Sampling(max_new_tokens=8))
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()], num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=PromptDataModule(rows, batch_size=2))
    sys.setprofile(None)
    return Counter(file for file, _ in called)


def measure() -> tuple[dict[str, int], dict[str, str]]:
    """Every number, and what it is the number of."""
    files, kinds = sizes()
    modules = classes()
    children = Counter(base.__name__ for each in modules.values() for base in each.__bases__)
    deepest = max(ALGORITHMS, key=lambda name: len(own_classes(modules[name])))
    lonely = [name for name in modules if children[name] == 1 and name != "PostTrainingModule"]
    step = run_a_step()
    inner = {file: number for file, number in step.items() if file.split("/")[0] in INNER_ROOMS}
    folders = Counter(str(Path(name).parent) for name in files)
    longest = {
        kind: max((n for n in kinds if n.startswith(kind)), key=kinds.__getitem__) for kind in ("class", "function")
    }
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    outside = {path: text for path, text in texts.items() if "app" not in path.relative_to(PACKAGE).parts}
    numbers = {
        "own classes up to LightningModule": len(own_classes(modules[deepest])),
        "bases with one child": len(lonely),
        "lines of the longest class": kinds[longest["class"]],
        "lines of the longest function": kinds[longest["function"]],
        "functions of a step": step.total(),
        "files of a step": len(step),
        "functions of a step in the inner rooms": sum(inner.values()),
        "files of a step in the inner rooms": len(inner),
        "files of the largest folder": max(folders.values()),
        **{f"arguments of {n}": len(inspect.signature(modules[n]).parameters) for n in ("GRPO", "PPO", "RLOO")},
        **{f"lines of algos/{n}.py": files[f"algos/{n}.py"] for n in ("grpo", "ppo", "dpo", "rloo", "reinforce_pp")},
        'arguments documented as "see X"': sum(len(re.findall(r": see `\w+`", text)) for text in texts.values()),
        "citations of AT-numbers": sum(len(re.findall(r"\bAT-?\d", text)) for text in tests.values()),
        "command line outside app/": sum(len(OPTION.findall(text)) for text in outside.values()),
        "lines of the package": sum(files.values()),
    }
    notes = {
        "own classes up to LightningModule": " < ".join(own_classes(modules[deepest])),
        "bases with one child": ", ".join(lonely),
        "lines of the longest class": longest["class"],
        "lines of the longest function": longest["function"],
        "files of the largest folder": folders.most_common(1)[0][0],
        "files of a step": ", ".join(f"{file} {number}" for file, number in sorted(step.items())),
    }
    return numbers, notes


def main() -> int:
    """Print the table."""
    numbers, notes = measure()
    for name, number in numbers.items():
        limit = f" (at most {MOST[name]})" if name in MOST else ""
        sign = "!" if number > MOST.get(name, number) else " "
        print(f"{sign} {number:6} {name}{limit}{': ' + notes[name] if notes.get(name) else ''}")
    return int(any(numbers[name] > most for name, most in MOST.items()))


if __name__ == "__main__":
    sys.exit(main())
