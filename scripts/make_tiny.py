"""Make the `tiny` model that is shipped inside the package: a small GPT-2, taught by SFT on noisy demonstrations.

    python scripts/make_tiny.py [FOLDER]

The same command on the same machine gives the same weights.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lit_posttrain import SFT, InstructDataModule
from lit_posttrain.models.loading import BUILT_IN
from lit_posttrain.models.weights import weights_sha256
from lit_posttrain.tasks.gridworld import DemonstrationGenerator, vocabulary

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
    return GPT2LMHeadModel(config)


def main() -> None:
    """Read the options, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=BUILT_IN["tiny"])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    seed_everything(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, layers=args.layers, width=args.width)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    # The learning rate does not fall: what comes out knows the way and strays from it, which is what RL is to mend.
    module = SFT(
        model,
        tokenizer=tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.95)),
        scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.1, total_iters=50),
    )
    demonstrations = DemonstrationGenerator(num_demonstrations=args.rows, noise=args.noise)
    trainer = Trainer(
        max_steps=args.steps,
        accumulate_grad_batches=2,  # parts of like length, so that little padding is computed
        gradient_clip_val=1.0,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, InstructDataModule(demonstrations, batch_size=args.batch_size))
    model.eval()
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"{args.folder}: {weights_sha256(model)}")


if __name__ == "__main__":
    main()
