"""What runs compute and what rows become, as digests: two tables are equal where nothing has changed.

python -m tests.digests runs OUT.json [CELL ...]      # small runs of every algorithm, in many ways
python -m tests.digests rows OUT.json                 # the tokens of every kind of data
python -m tests.digests compare BEFORE.json AFTER.json
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning import Callback

from tests.cutting import ALGORITHMS, is_timing

ROOT = Path(__file__).resolve().parents[1]
KILLED = 9

SHARED = ["logger=csv", "trainer.max_steps=7", "val_every_steps=3", "callbacks.last_checkpoint.every_n_train_steps=2"]
SHARED += ["trainer.accumulate_grad_batches=2"]

TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]
WAYS = {
    "one": [],
    "cut": [],  # inside a rollout or an optimiser step, and gone on with
    "ddp": ["trainer=ddp", *TWO],
    "fsdp": ["trainer=fsdp", *TWO],
}
REWARD_MODEL = "{reward_model-one}/export"
VARIANTS: dict[str, list[str]] = {
    "lora": [*ALGORITHMS["grpo"], "model/lora=default"],
    "lora-adapter": [*ALGORITHMS["dpo"], "model/lora=default", "model.lora.export=adapter"],
    "packing": [*ALGORITHMS["sft"], "data.packing=true"],
    "kto": [*ALGORITHMS["dpo"], "data=gridworld_unpaired", "algo.loss=kto", "data.path.num_pairs=20"],
    "dpo-precomputed": [*ALGORITHMS["dpo"], "algo.precompute_reference=true"],
    "ppo-shared": [*ALGORITHMS["ppo"], "algo.critic.start=shared"],
    "ppo-reward-model": [*ALGORITHMS["ppo"], f"algo.critic.start={REWARD_MODEL}"],
    "ppo-steps": [*ALGORITHMS["ppo"], "reward=gridworld_steps"],
    "dynamic-sampling": [*ALGORITHMS["grpo"], "algo.max_resample_batches=2", "algo.overlong_fraction=0.5"],
    "learned-reward": [*ALGORITHMS["rloo"], "reward=model", f"reward.path={REWARD_MODEL}"],
    "fresh": [*ALGORITHMS["sft"], "model=tiny_random"],
    "clipped": [*ALGORITHMS["ppo"], "trainer.gradient_clip_val=0.05"],
}
PIPELINE = [
    *("pipeline=rlhf", "logger=csv", "pipeline.stages.sft.gate=null", "pipeline.stages.rm.gate=null"),
    *("stage.sft.trainer.max_steps=3", "stage.sft.data.path.num_demonstrations=24", "stage.sft.data.batch_size=8"),
    *("stage.sft.data.path.num_validation=4", "stage.sft.data.val_prompts.path.num_validation=4"),
    *("stage.rm.trainer.max_steps=3", "stage.rm.data.path.num_pairs=24", "stage.rm.data.path.num_validation=4"),
    *("stage.rm.data.batch_size=8", "stage.ppo.trainer.max_steps=3", "stage.ppo.data.path.num_prompts=8"),
    *("stage.ppo.data.path.num_validation=4", "stage.ppo.data.batch_size=4", "stage.ppo.algo.group_size=2"),
    *("stage.ppo.algo.sampling.max_new_tokens=8",),
]


class KillAt(Callback):
    """Ends the process without a word, inside an optimiser step.

    Args:
        step: how many are done then.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Behind a micro-batch that does not end its step."""
        inside = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if trainer.global_step == self.step and inside:
            os._exit(KILLED)


def cells() -> dict[str, list[str]]:
    """The options of every run, in an order in which each comes after those that it needs."""
    found = {f"{name}-{way}": [*options, *WAYS[way]] for way in WAYS for name, options in ALGORITHMS.items()}
    return {**found, **VARIANTS, "pipeline": PIPELINE}


def train(folder: Path, options: Iterable[str], *, status: int = 0) -> None:
    """The command line, as a process.

    Raises:
        RuntimeError: if it ends with another status.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",  # peft writes a set into adapter_config.json
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *options],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != status:
        raise RuntimeError(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def run_cell(name: str, options: list[str], folder: Path) -> dict[str, str]:
    """Run one, in `folder/name`, and give the digests of what it leaves."""
    inputs = {other.name: str(other) for other in folder.iterdir()}
    filled = [option.format(**inputs) if "{" in option else option for option in options]
    place = f"hydra.run.dir={folder / name}"
    if name == "pipeline":
        train(folder, [*filled, place])
        return {f"{stage}/{k}": v for stage in ("sft", "rm", "ppo") for k, v in digests(folder / name / stage).items()}
    if name.endswith("-cut"):
        kill = "+callbacks.kill={_target_: tests.digests.KillAt, step: 3}"
        train(folder, [*SHARED, *filled, place, kill], status=KILLED)
        train(folder, [*SHARED, *filled, f"ckpt_path={folder / name}/checkpoints/last.ckpt"])
    else:
        train(folder, [*SHARED, *filled, place])
    return digests(folder / name)


def digests(folder: Path) -> dict[str, str]:
    """Of all that a run leaves, without what the clock says."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not is_timing(k)} for row in csv.DictReader(file)]
    found = {"weights": summary["weights_sha256"][:16], "metrics.csv": sha256(json.dumps(rows))}
    files = [
        folder / "completions.jsonl",
        *(f for e in ("export", "export_best") for f in sorted((folder / e).rglob("*"))),
    ]
    return found | {str(f.relative_to(folder)): sha256(f.read_bytes()) for f in files if f.is_file()}


def sha256(content: str | bytes) -> str:
    """Its beginning, which is enough to tell two apart."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


# Rows.

CHAT = """{% for m in messages %}<{{ m['role'] }}>
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}
{% endgeneration %}{% else %}{{ m['content'] }}
{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>
{% endif %}"""


def said(*turns: str) -> list[dict[str, str]]:
    """A dialogue that a user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


SYSTEM = [{"role": "system", "content": "Be short."}]
HH = "\n\nHuman: grid {0}\n\nAssistant: a1\n\nHuman: goal\n\nAssistant: {1}"
FILES: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"grid {i} walls a{i}"} for i in range(6)],
    "completions": [
        {"prompt": f"grid {i} ", "completion": f"a{i} b1", "question": f"q{i}", "answer": f"w #### {i}"}
        for i in range(6)
    ],
    "messages": [{"messages": [*SYSTEM[: i % 2], *said(f"grid {i}", "a1", f"goal {i}", f"b{i}")]} for i in range(6)],
    "prompt_messages": [{"prompt": [*SYSTEM[: i % 2], *said(f"grid {i}", "a1", f"goal {i}")]} for i in range(6)],
    "alpaca": [{"instruction": f"go {i}", "input": "" if i % 2 else f"a{i}", "output": f"b{i}"} for i in range(6)],
    "pairs": [{"prompt": f"grid {i} ", "chosen": f"a{i}", "rejected": "b1 b2", "margin": i / 2} for i in range(1, 7)],
    "pair_messages": [
        {"prompt": said(f"grid {i}"), "chosen": said(f"grid {i}", f"a{i}")[1:], "rejected": said("", "b1 b2")[1:]}
        for i in range(1, 7)
    ],
    "dialogues": [{"chosen": said(f"grid {i}", f"a{i}"), "rejected": said(f"grid {i}", "b1 b2")} for i in range(1, 7)],
    "hh": [{"chosen": HH.format(i, f"a{i}"), "rejected": HH.format(i, "b1 b2")} for i in range(1, 7)],
    "judged": [{"prompt": f"grid {i} ", "completion": f"a{i}", "label": i % 2 == 0} for i in range(6)],
}
TEMPLATES = ['data.prompt_template="Question: {question}\\nAnswer:"']
ALONE = ["data.chat=true", 'data.system_prompt="Be short."']
KEPT = ["data.val_size=2"]
FEW = {
    "gridworld": ["data.path.num_prompts=20", "data.path.num_validation=4"],
    "gridworld_sft": ["data.path.num_demonstrations=20", "data.path.num_validation=4"],
    "gridworld_preferences": ["data.path.num_pairs=20", "data.path.num_validation=4"],
    "gridworld_unpaired": ["data.path.num_pairs=20", "data.path.num_validation=4"],
}
# Options of the data, and the file that they read.
ROWS: dict[str, tuple[list[str], str | None]] = {
    **{f"{name}": ([f"data={name}", *few], None) for name, few in FEW.items()},
    "gsm8k": (["data=gsm8k", *KEPT], "completions"),
    "gsm8k_sft": (["data=gsm8k_sft", *KEPT], "completions"),
    "alpaca": (["data=alpaca", *KEPT], "alpaca"),
    "hh_rlhf": (["data=hh_rlhf", *KEPT], "hh"),
    "prompts": (["data=prompts", *KEPT], "completions"),
    "prompts-template": (["data=prompts", *KEPT, *TEMPLATES], "completions"),
    "prompts-chat": (["data=prompts", *KEPT, *ALONE], "completions"),
    "prompts-messages": (["data=prompts", *KEPT], "prompt_messages"),
    "instruct-text": (["data=instruct", *KEPT], "text"),
    "instruct-pairs": (["data=instruct", *KEPT], "completions"),
    "instruct-templates": (["data=instruct", *KEPT, *TEMPLATES, 'data.completion_template=" {answer}"'], "completions"),
    "instruct-chat": (["data=instruct", *KEPT, *ALONE], "completions"),
    "instruct-messages": (["data=instruct", *KEPT], "messages"),
    "instruct-packed": (["data=instruct", *KEPT, "data.packing=true"], "completions"),
    "preferences": (["data=preferences", *KEPT], "pairs"),
    "preferences-template": (["data=preferences", *KEPT, 'data.prompt_template="Q: {prompt}A:"'], "pairs"),
    "preferences-chat": (["data=preferences", *KEPT, *ALONE], "pairs"),
    "preferences-messages": (["data=preferences", *KEPT], "pair_messages"),
    "preferences-dialogues": (["data=preferences", *KEPT], "dialogues"),
    "preferences-hh": (["data=preferences", *KEPT, "data.format=implicit"], "hh"),
    "preferences-judged": (["data=preferences", *KEPT], "judged"),
    "chosen": (["data=hh_rlhf", "data.view=chosen", *KEPT], "hh"),
    "preference_prompts": (["data=hh_rlhf", "data.view=prompts", *KEPT], "hh"),
}


def rows_of(options: list[str]) -> str:
    """Digest of the tokens and other values of both splits, without the names of fields."""
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    from lit_posttrain.app.run import make_data
    from lit_posttrain.data import PromptDataModule
    from lit_posttrain.data.formats.chat import encode_prompt

    blank = ["run_dir=.", "names.algo=a", "names.model=m", "names.data=d"]
    with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
        cfg = compose("train", [*blank, *options])
    data = make_data(cfg)
    tokenizer = instantiate(cfg.model, _convert_="all").load_tokenizer()
    data.setup("fit")
    data.encode(tokenizer)
    if isinstance(data, PromptDataModule):
        found: Any = [
            [[encode_prompt(row["prompt"], tokenizer), row] for row in rows]
            for rows in (data.train_rows, data.val_rows)
        ]
    else:
        found = [[values(e) for s in data.encoded(split) for e in s.examples] for split in ("train", "validation")]
    assert all(found), "a split is empty"
    return sha256(json.dumps(found, sort_keys=True))


def values(node: Any) -> Any:
    """The values of nested dataclasses, as lists."""
    if dataclasses.is_dataclass(node):
        return [values(getattr(node, field.name)) for field in dataclasses.fields(node)]
    if isinstance(node, (list, tuple, array)):
        return [values(each) for each in node]
    return node


def save_byte_tokenizer(folder: Path) -> None:
    """A folder of a model that reads any text byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<end>", "<pad>", *alphabet]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    size = {"n_positions": 512, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2Config(vocab_size=len(words), eos_token_id=0, pad_token_id=1, **size).save_pretrained(folder)


def rows_table(folder: Path) -> dict[str, dict[str, str]]:
    """Of every kind of data, with and without a chat template; what is refused is refused by the same error."""
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_byte_tokenizer(folder / "plain")
    shutil.copytree(folder / "plain", folder / "chat")
    (folder / "chat" / "chat_template.jinja").write_text(CHAT)
    table = {}
    for kind in ("plain", "chat"):
        model = ["model=local", f"model.path={folder}/{kind}"]
        for name, (options, file) in ROWS.items():
            path = [] if file is None else [f"data.path={folder}/{file}.jsonl"]
            try:
                digest = rows_of([*options, *path, *model])
            except Exception as error:
                digest = f"refused: {type(error).__name__}"
                print(name, kind, str(error).splitlines()[0][:150])
            table[f"{name} ({kind})"] = {
                "options": " ".join([*options, *model]).replace(str(folder), ""),
                "rows": digest,
            }
    return table


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print a line for each cell; how many differ."""
    wrong = 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        keys = [key for key in {**old, **new} if key != "options" and old.get(key) != new.get(key)]
        wrong += bool(keys)
        print(f"{name:36} {'equal' if not keys else 'differs: ' + ', '.join(keys)}")
        if old.get("options") != new.get("options"):
            print(f"    before: {old.get('options')}\n    after:  {new.get('options')}")
    print(f"{wrong} of {len(before.keys() | after.keys())} cells differ")
    return wrong


def main() -> int:
    """The exit status: 1 where two tables differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["runs", "rows", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("others", nargs="*", help="cells to run, or the other table")
    given = parser.parse_args()
    if given.what == "compare":
        return compare(json.loads(given.file.read_text()), json.loads(Path(given.others[0]).read_text())) > 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.what == "rows":
            table: dict[str, Any] = rows_table(folder)
        else:
            table = {}
            for name, options in cells().items():
                if given.others and name not in given.others:
                    continue
                try:
                    table[name] = {"options": " ".join(options), **run_cell(name, options, folder)}
                except RuntimeError as error:
                    table[name] = {"options": " ".join(options), "error": str(error)[-1500:]}
                    print(error)
                print(name, table[name].get("weights", ""), flush=True)
        given.file.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
