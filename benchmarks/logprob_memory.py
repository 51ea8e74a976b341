"""Peak memory and time of the log-probs of completions and their gradient: our `Policy` against the plain way.

The plain way keeps the logits of all positions, (B, T, V), or their log-softmax, and the gradients of both. `Policy`
runs the output head a chunk of positions at a time, and again in backward. Each way is measured in a process of its
own, since the peak of a process never goes down.

    python benchmarks/logprob_memory.py
    python benchmarks/logprob_memory.py --device cuda --num-layers 12 --batch-size 32 --length 1024
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lit_posttrain.models.networks.policy import Policy

# On a CPU the peak is that of the process. By default glibc keeps freed blocks below 32 MB for itself, so that the peak
# tells how the heap is fragmented; with this it gives back every block above 1 MB, and the peak tells what was alive.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
WAYS = ("plain", "policy")


def parse_arguments() -> argparse.Namespace:
    """The size of the work, and where it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences, B")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, T")
    parser.add_argument("--prompt-length", type=int, default=64, help="of which prompt, P")
    parser.add_argument("--num-layers", type=int, default=2, help="of GPT-2 with random weights; GPT-2 has 12")
    parser.add_argument("--vocab-size", type=int, default=50257, help="V")
    parser.add_argument("--chunk-size", type=int, default=512, help="positions whose logits Policy keeps at a time")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--measure", choices=WAYS, help="measure one way in this process and print JSON")
    return parser.parse_args()


def make_work(arguments: argparse.Namespace) -> tuple[GPT2LMHeadModel, Tensor]:
    """The model and (B, T) token ids, the same in every process."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=arguments.vocab_size,
        n_layer=arguments.num_layers,
        n_positions=max(1024, arguments.length),
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    ids = torch.randint(arguments.vocab_size, (arguments.batch_size, arguments.length))
    return GPT2LMHeadModel(config).train().to(arguments.device), ids.to(arguments.device)


def plain(model: GPT2LMHeadModel, arguments: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Log-probs (B, C) through the logits of all positions."""

    def logprobs(ids: Tensor) -> Tensor:
        all_logprobs = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        return all_logprobs.gather(-1, ids[:, 1:, None])[:, arguments.prompt_length - 1 :, 0]

    return logprobs


def chunked(model: GPT2LMHeadModel, arguments: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Log-probs (B, C) through `Policy`, which computes the entropies too."""
    policy = Policy(model, chunk_size=arguments.chunk_size)

    def logprobs(ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids, dtype=torch.bool)
        prompt, completion = slice(None, arguments.prompt_length), slice(arguments.prompt_length, None)
        return policy(
            prompt_ids=ids[:, prompt],
            prompt_mask=mask[:, prompt],
            completion_ids=ids[:, completion],
            completion_mask=mask[:, completion],
            loss_mask=mask[:, completion],
        ).logprobs

    return logprobs


def peak_mb(device: str) -> float:
    """Of the GPU, or of the process with all that it has loaded."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Forward and backward of one way in this process."""
    model, ids = make_work(arguments)
    logprobs = {"plain": plain, "policy": chunked}[arguments.measure](model, arguments)
    before, seconds, mean = peak_mb(arguments.device), [], 0.0
    for _ in range(1 + arguments.repeats):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = -logprobs(ids).mean()
        loss.backward()
        mean = loss.item()  # waits for the device
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = peak_mb(arguments.device)
    return {"peak_mb": peak, "step_mb": peak - before, "step_s": statistics.median(seconds[1:]), "loss": mean}


def main() -> None:
    """Measure both ways and print the comparison."""
    arguments = parse_arguments()
    if not 0 < arguments.prompt_length < arguments.length:
        raise SystemExit(f"`--prompt-length` must be from 1 to `--length` - 1, got {arguments.prompt_length}.")
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ALLOCATOR | os.environ)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = results["policy"], results["plain"]
    if abs(ours["loss"] - theirs["loss"]) > 1e-3 * abs(theirs["loss"]):
        raise SystemExit(f"the two ways disagree, so that their cost means nothing: {results}")
    print(f"{'':10}{'peak MB':>10}{'step MB':>10}{'step s':>10}{'loss':>12}")
    for way, row in results.items():
        print(f"{way:10}{row['peak_mb']:10.0f}{row['step_mb']:10.0f}{row['step_s']:10.2f}{row['loss']:12.5f}")
    ratios = "".join(f"{theirs[name] / ours[name]:10.2f}" for name in ("peak_mb", "step_mb", "step_s"))
    print(f"{'ratio':10}{ratios}")


if __name__ == "__main__":
    main()
