"""Make the `tiny` model that is shipped inside the package: a small GPT-2 taught by noisy demonstrations on the grid.

    python scripts/make_tiny.py [FOLDER]

The same command on the same machine gives the same weights.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lit_posttrain.models.fingerprint import weights_sha256
from lit_posttrain.models.loading import BUILT_IN
from lit_posttrain.tasks.gridworld import demonstration_rows, vocabulary

CONTEXT = 128


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every word of grids up to 8 x 8."""
    words = ["<pad>", "<eos>", "<unk>", *vocabulary(8, 8)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int) -> GPT2LMHeadModel:
    """GPT-2's architecture with fresh weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's own, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def encode(rows: list, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and labels on completion and EOS only."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    completions = tokenizer([row["completion"] for row in rows])["input_ids"]
    width = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row = torch.tensor([*prompt, *completion, tokenizer.eos_token_id])
        ids[index, : len(row)] = row
        labels[index, len(prompt) : len(row)] = row[len(prompt) :]
    return ids, labels


def train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    rows: int,
    noise: float,
) -> None:
    """Teach the model the completions of noisy demonstrations."""
    demonstrations = demonstration_rows(rows, split="train", seed=0, noise=noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.05)
    rng = random.Random(0)
    model.train()
    for step in range(steps):
        ids, labels = encode(rng.sample(demonstrations, batch_size), tokenizer)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    """Read the options, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=BUILT_IN["tiny"])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, layers=args.layers, width=args.width)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, tokenizer, steps=args.steps, batch_size=args.batch_size, lr=args.lr, rows=args.rows, noise=args.noise)
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"{args.folder}: {weights_sha256(model)}")


if __name__ == "__main__":
    main()
