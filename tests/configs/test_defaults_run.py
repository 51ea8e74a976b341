"""Every algorithm on every data group that it can learn from, as `python train.py algo= data=` says it."""

import json

import pytest
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.run import run
from lit_posttrain.models.loading import Pretrained
from lit_posttrain.models.networks.reward import RewardNetwork
from tests.composing import choices, compose_train

ONLINE = ("grpo", "ppo", "rloo", "reinforce_pp")
# What learns from which data; `unpaired` is an option of its algorithm.
LEARNERS = {
    ("gridworld", "prompts", "gsm8k"): ONLINE,
    ("gridworld_sft", "instruct", "gsm8k_sft", "alpaca"): ("sft",),
    ("gridworld_preferences", "preferences", "hh_rlhf"): ("dpo", "reward_model"),
    ("gridworld_unpaired",): ("dpo",),
}
RUNS = [("tiny", algo, data) for group, algos in LEARNERS.items() for data in group for algo in algos]
RUNS += [("tiny_random", algo, data) for (data, *_), algos in LEARNERS.items() for algo in algos]
# No more than a path, of what has none that is there by itself.
PATHS = {
    "prompts": ["data.path=prompts.jsonl", "reward.path=rewards.py:length"],
    "gsm8k": ["data.path=prompts.jsonl"],
    "instruct": ["data.path=demonstrations.jsonl"],
    "gsm8k_sft": ["data.path=prompts.jsonl"],
    "alpaca": ["data.path=prompts.jsonl"],
    "preferences": ["data.path=pairs.jsonl"],
    "hh_rlhf": ["data.path=dialogues.jsonl"],
    "gridworld_unpaired": ["algo.loss=kto"],
}
# What makes a run short, and no more learnt.
SHORT = {
    "trainer.max_steps": 1,
    "data.batch_size": 2,
    "data.val_size": 1,
    "data.path.num_prompts": 4,
    "data.path.num_demonstrations": 4,
    "data.path.num_pairs": 4,
    "data.path.num_validation": 2,
    "data.val_prompts.path.num_validation": 2,
    "algo.validation.num_samples": 1,
    "algo.normalization_pairs": 2,
    "trainer.accumulate_grad_batches": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a file of each form, a reward and a reward model."""
    folder = tmp_path_factory.mktemp("world")
    words = ["a1", "a2", "b2", "c3"]
    rows = {
        "prompts": [
            {
                "prompt": word,
                "question": word,
                "answer": f"{word} #### {i}",
                "instruction": word,
                "input": "",
                "output": word,
            }
            for i, word in enumerate(words)
        ],
        "demonstrations": [{"prompt": word, "completion": f" {word}"} for word in words],
        "pairs": [{"prompt": word, "chosen": f" {word} a1", "rejected": " e5"} for word in words],
        "dialogues": [
            {side: f"\n\nHuman: {word}\n\nAssistant: {end}" for side, end in (("chosen", word), ("rejected", "e5"))}
            for word in words
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewards.py").write_text(
        "def length(completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    tiny = Pretrained("tiny")
    model, tokenizer = tiny.load(), tiny.load_tokenizer()
    network = RewardNetwork.from_causal_lm(model, pad_id=tokenizer.pad_token_id, vocab_size=len(tokenizer))
    network.save_pretrained(folder / "reward_model")
    tokenizer.save_pretrained(folder / "reward_model")
    return folder


def shortened(cfg: DictConfig) -> DictConfig:
    """With those of the options that make a run short which it has a value of."""
    for name, value in SHORT.items():
        if OmegaConf.select(cfg, name) is not None:
            OmegaConf.update(cfg, name, value)
    return cfg


@pytest.mark.parametrize(("model", "algo", "data"), RUNS)
def test_a_run_without_further_options(world, monkeypatch, tmp_path, model, algo, data):
    run_short(world, monkeypatch, tmp_path, f"algo={algo}", f"model={model}", f"data={data}", *PATHS.get(data, []))


@pytest.mark.parametrize(
    ("algo", "view"), [("sft", ["chosen"]), *((algo, ["prompts", "reward.path=reward_model"]) for algo in ONLINE)]
)
def test_a_run_on_preferences_seen_otherwise(world, monkeypatch, tmp_path, algo, view):
    data = [*PATHS["preferences"], f"data.view={view[0]}", *view[1:]]
    run_short(world, monkeypatch, tmp_path, f"algo={algo}", "model=tiny", "data=preferences", *data)


def run_short(world, monkeypatch, tmp_path, *overrides):
    """A run of one step, in the folder of the world."""
    monkeypatch.chdir(world)
    quiet = ["threads=1", "logger=csv", "+trainer.enable_progress_bar=false"]
    run(shortened(compose_train(*overrides, *quiet, run_dir=tmp_path)))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 1
    assert (tmp_path / "export" / "config.json").is_file()


def test_all_groups_are_here():
    groups = {group: {option for g, option in choices() if g == group} for group in ("algo", "data")}
    assert {data for group in LEARNERS for data in group} == groups["data"]
    assert {algo for algos in LEARNERS.values() for algo in algos} == groups["algo"]
