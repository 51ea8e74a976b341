"""Every command and every block of Python in the README runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from transformers import GPT2Config, GPT2LMHeadModel

from lit_posttrain.app.cli import main
from tests.composing import CONF

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line
]
# The set-up commands and pytest itself are what .ci/run does; make_tiny takes minutes; ddp and fsdp have own tests.
ELSEWHERE = {
    "python -m lit_posttrain.app.inspect data=gridworld_sft",  # has tests of its own
    'pip install -e ".[dev]" && pytest',
    "pytest @tests/quick.txt",  # test_contributing.py
    "python scripts/make_tiny.py",
    "python train.py trainer=ddp trainer.devices=2",
    "python train.py trainer=fsdp trainer.devices=2",
}
# Several runs each; pipelines and the picture of a sweep have tests of their own.
LONG = ("pipeline=", "-cn algorithms")
SHORT = {
    "trainer.max_steps": "1",
    "logger": "csv",
    "data.batch_size": "2",
    "algo.group_size": "2",
    "data.val_size": "2",
    "data.path.num_prompts": "8",
    "data.path.num_validation": "2",
    "algo.sampling.max_new_tokens": "4",
}


def is_long(command: str) -> bool:
    """Whether a command makes several runs."""
    return any(part in command for part in LONG)


@pytest.fixture(scope="module")
def world(tmp_path_factory, word_tokenizer):
    """A folder with what the commands name: data, a reward, sweeps, a finished run, a cache in which gpt2 exists."""
    folder = tmp_path_factory.mktemp("readme")
    snapshot = folder / "hub" / "models--gpt2" / "snapshots" / ("0" * 40)
    config = GPT2Config(vocab_size=40, n_positions=256, n_embd=8, n_layer=1, n_head=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(snapshot)
    word_tokenizer.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    rows = [f'{{"prompt": "w{i} w3", "question": "w{i}?", "answer": "w1 #### {i}"}}' for i in range(8)]
    for name in ("prompts.jsonl", "gsm8k_train.jsonl"):
        (folder / name).write_text("\n".join(rows) + "\n")
    reward = next(block for kind, block in BLOCKS if kind == "python" and "my_rewards.py" in block)
    (folder / "my_rewards.py").write_text(reward)
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    run(folder, "python train.py hydra.run.dir=run")
    return folder


def arguments_of(command: str) -> list[str]:
    """The command's own arguments, with settings that make it short where it does not name them itself."""
    words = shlex.split(command.replace("<run>", "run"))
    assert words[:2] == ["python", "train.py"], command
    given = dict(word.split("=", 1) for word in words[2:] if "=" in word and not word.startswith("-"))
    settings = dict(SHORT)
    if given.get("algo") == "sft":
        del settings["algo.group_size"]
        if "data" not in given:
            settings |= {"data.path.num_demonstrations": "8", "data.val_prompts.path.num_validation": "2"}
            del settings["data.path.num_prompts"]
    if "data" in given:
        settings.pop("data.path.num_prompts")
        settings.pop("data.path.num_validation")
    else:
        del settings["data.val_size"]
    if given.get("algo") == "reward_model":
        for name in ("algo.group_size", "algo.sampling.max_new_tokens", "data.path.num_prompts"):
            del settings[name]
        settings["data.path.num_pairs"] = "8"
    if "ckpt_path" in given and "mode" not in given:
        settings["trainer.max_steps"] = "2"
    kept = [word for word in words[2:] if word.split("=")[0] not in settings]
    return [*kept, *(f"{name}={value}" for name, value in settings.items())]


def run(folder: Path, command: str) -> None:
    """In this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *arguments_of(command)])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        GlobalHydra.instance().clear()
        main()
        GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    "command",
    [c for c in dict.fromkeys(COMMANDS) if c not in ELSEWHERE and "gpt2" not in c and not is_long(c)],
)
def test_command(world, command):
    run(world, command.removeprefix("pip install -e . && "))


CACHED = [command for command in COMMANDS if "model=gpt2" in command and not is_long(command)]
ONE_AFTER_THE_OTHER = """
import json, sys
from hydra.core.global_hydra import GlobalHydra
from lit_posttrain.app.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    main()
    GlobalHydra.instance().clear()
"""


def test_the_commands_with_a_model_from_the_cache(world):
    """In a process of their own, which finds the cache as it starts."""
    assert len(CACHED) >= 2
    process = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps([arguments_of(command) for command in CACHED])],
        cwd=world,
        env={
            **{"PATH": "/usr/bin:/bin", "HF_HOME": str(world), "HF_HUB_OFFLINE": "1", "HOME": str(world)},
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    assert process.stdout.count("everything is in") == len(CACHED)


def test_the_block_for_lightning_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(block for kind, block in BLOCKS if kind == "python" and "Trainer(" in block)
    assert len([line for line in block.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "my_model" / "model.safetensors").is_file()


def test_the_table_of_groups_names_every_choice():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, flags=re.MULTILINE))
    groups = {path.name: {file.stem for file in path.glob("*.yaml")} for path in CONF.iterdir() if path.is_dir()}
    groups = {name: choices for name, choices in groups.items() if choices and name != "hydra"}
    assert set(groups) <= set(rows)
    for name, choices in groups.items():
        named = set(re.findall(r"`(\w+)`", rows[name]))
        assert named <= choices | {"algo", "data"}, name
        assert choices <= named or name == "recipe", name  # one for each model and algorithm


def test_every_metric_is_in_the_glossary(tmp_path_factory, world):
    header = (world / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in header[1:]:
        stem = "reward/<function>" if name == "reward/path_reward" else name
        assert f"`{stem}`" in README, name
