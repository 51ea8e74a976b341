"""With the weights dealt out over two processes (FSDP2) they do what one does with all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.models.weights import tensors_sha256, weights_sha256
from tests.integration import ranks, shards
from tests.integration.test_ddp import assert_equal_gradients, completions, measured, result
from tests.integration.two_ranks import run_two_ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of the jobs on one process."""
    folder = tmp_path_factory.mktemp("jobs") / "one_process"
    folder.mkdir()
    for name, job in shards.EXACT.items():
        torch.save(job.fit(folder / name, job.build()), folder / f"{name}-0.pt")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The folder of the jobs on two processes; nothing may take longer than it must, least of all for ever."""
    folder = tmp_path_factory.mktemp("sharded")
    run_two_ranks("tests.integration.shards", folder)
    return folder


def assert_close(got: dict[str, Any], want: dict[str, Any], *, atol: float) -> None:
    assert got.keys() == want.keys()
    assert len(want) > 0
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=atol, rtol=0, msg=name)


def assert_same_steps(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert_equal_gradients(got["gradients"], want["gradients"], atol=1e-10)
    assert len(got["metrics"]) == len(want["metrics"])
    for metrics, expected in zip(got["metrics"], want["metrics"], strict=True):
        assert measured(metrics) == pytest.approx(measured(expected), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", shards.EXACT)
def test_every_step_is_that_of_one_process(alone, sharded, name):
    """Sampling, the reference, a critic of either kind, clipping, packing, validation, scores that are measured."""
    want = result(alone, name)
    for rank in range(2):
        assert_same_steps(result(sharded, name, rank), want)
    assert_close(result(sharded, name)["weights"], want["weights"], atol=1e-10)
    assert result(sharded, name, 1)["weights"] == {}


@pytest.mark.parametrize("name", shards.OFFLINE)
def test_every_step_of_two_processes_with_all_weights_too(alone, sharded, name):
    for rank in range(2):
        assert_same_steps(result(sharded, f"{name}-ddp", rank), result(alone, name))


@pytest.mark.parametrize("name", ["ppo", "shared", "grpo"])
def test_the_completions_file_is_that_of_one_process(alone, sharded, name):
    """Every completion once, in the order of the prompts."""
    got, want = (completions(folder, name) for folder in (sharded, alone))
    assert len(got) == len(want) > 0
    for line, expected in zip(got, want, strict=True):
        for number in ("advantage", "penalty"):
            assert line.pop(number) == pytest.approx(expected.pop(number), abs=1e-5)
        assert line == expected


def test_one_rank_s_completions_end_at_once_and_the_other_s_never(sharded):
    lines = completions(sharded, "shared")
    lengths = [[line["length"] for line in lines if line["prompt"][0] == kind] for kind in "cw"]
    assert max(lengths[0]) < ranks.MAX_NEW_TOKENS
    assert min(lengths[1]) == ranks.MAX_NEW_TOKENS


def test_ten_steps_on_the_same_rollouts_are_those_of_ddp(sharded):
    """AdamW with two groups, a critic that learns alone at first, gradients clipped apart."""
    for rank in range(2):
        runs = result(sharded, "trained", rank)
        got, want = runs["sharded"]["metrics"], runs["whole"]["metrics"]
        assert len(got) == len(want) == 10
        for metrics, expected in zip(got, want, strict=True):
            shared = measured({name: metrics[name] for name in expected})
            assert shared == pytest.approx(measured(expected), rel=1e-4, abs=1e-5)
        assert [step["policy/grad_norm"] == 0 for step in want] == [True] * 2 + [False] * 8
        assert min(step["value/grad_norm"] for step in want) > shards.TRAINED.trainer["gradient_clip_val"]
    runs = result(sharded, "trained")
    before = dict(shards.TRAINED.build(torch.float32).state_dict()) or ranks.make_model(torch.float32).state_dict()
    moved = max((runs["whole"]["weights"][f"policy.model.{n}"] - before[n]).abs().max() for n in before)
    assert moved > 1e-3
    assert_close(runs["sharded"]["weights"], runs["whole"]["weights"], atol=1e-5)


def test_weights_in_half_precision(sharded):
    """Policy, critic and reference are; the first rollout is that of the policy that is the reference."""
    for rank in range(2):
        first, second = result(sharded, "halved", rank)["metrics"]
        assert first["policy/kl_ref"] == 0 < second["policy/kl_ref"]
        assert first["policy/ratio_max"] == second["policy/ratio_max"] == 1
        assert min(first["policy/grad_norm"], first["value/grad_norm"]) > 0.1
    weights = result(sharded, "halved")["weights"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("step", shards.RESUMED)
def test_resuming_is_exact(sharded, step):
    whole, resumed = result(sharded, "trained")["sharded"], result(sharded, f"trained-from-{step}")
    assert resumed["step"] == whole["step"] == 10
    assert len(resumed["gradients"]) == 10 - step
    assert_close(resumed["weights"], whole["weights"], atol=0)


@pytest.mark.parametrize("kind", ["file", "parts"])
def test_resuming_is_exact_whatever_a_checkpoint_is(sharded, kind):
    whole, resumed = result(sharded, "taught")[kind], result(sharded, f"taught-{kind}")
    assert (resumed["step"], len(resumed["gradients"])) == (6, 4)
    assert_close(resumed["weights"], whole["weights"], atol=0)


def test_one_process_goes_on_from_a_checkpoint_of_dealt_out_weights(sharded, tmp_path):
    checkpoint = sharded / "trained" / "checkpoints" / "step=8.ckpt"
    resumed = shards.resumed(tmp_path, shards.TRAINED, checkpoint)
    assert_close(resumed["weights"], result(sharded, "trained")["sharded"]["weights"], atol=1e-5)


def test_stored_weights_can_be_loaded_into_dealt_out_ones(sharded):
    stored = torch.load(sharded / "trained" / "checkpoints" / "step=8.ckpt", weights_only=True)["state_dict"]
    assert_close(result(sharded, "trained")["loaded"], stored, atol=0)
    assert not torch.equal(
        stored["policy.model.lm_head.weight"], result(sharded, "trained")["exported"]["lm_head.weight"]
    )


@pytest.mark.parametrize(("folder", "run"), [("export", "sharded"), ("whole/export", "whole")])
def test_the_export_has_all_weights(sharded, folder, run):
    """Written by the first process, with the weights dealt out and with all of them in each."""
    path = sharded / "trained" / folder
    model = AutoModelForCausalLM.from_pretrained(path)
    weights = result(sharded, "trained")[run]["weights"]
    policy = {n.removeprefix("policy.model."): t for n, t in weights.items() if n.startswith("policy.")}
    assert weights_sha256(model) == tensors_sha256(policy)
    ids = AutoTokenizer.from_pretrained(path)("c1 w2", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, 2, len(ranks.WORDS))


def test_a_run_of_the_command_line(sharded):
    """`trainer=fsdp`: one file of each kind; the digest is that of the weights that it leaves."""
    folder = sharded / "command"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "parts.json", "metrics.csv", "completions.jsonl", "summary.json"),
        *("checkpoints", "export", "export_best"),
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert b"\nCRC-32 " in (folder / "checkpoints" / "last.ckpt").read_bytes()[-20:]  # by `AtomicCheckpointIO`
    assert len(completions(sharded, "command")) == 3 * 2
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    digests = [
        weights_sha256(AutoModelForCausalLM.from_pretrained(folder / each)) for each in ("export", "export_best")
    ]
    assert digests[0] == summary["weights_sha256"]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    policy = {n.removeprefix("policy.model."): t for n, t in best.items() if n.startswith("policy.")}
    reward = summary["metrics"]["val/reward"]
    assert digests[1] == (digests[0] if reward["last"] == reward["best"] else tensors_sha256(policy))
    scores = json.loads((sharded / "validated" / "validation.json").read_text())
    assert scores == {name: each["last"] for name, each in summary["metrics"].items() if name.startswith("val/")}


def test_killed_together_and_gone_on_with_as_if_nothing_had_happened(sharded):
    """In three parts; what differs from the uninterrupted run is named."""
    assert json.loads((sharded / "killed-0.json").read_text()) == ""


def test_predictions_are_those_of_one_process(sharded, tmp_path):
    """In the order of the prompts, 5 of them in batches of 3."""
    shards.command(tmp_path, "mode=predict")
    want = (tmp_path / "predictions.jsonl").read_text()
    assert (sharded / "predicted" / "predictions.jsonl").read_text() == want
    assert len(want.splitlines()) == 5


@pytest.mark.parametrize("family", shards.DEALT_OUT)
def test_every_family_is_dealt_out_by_blocks(sharded, family):
    """Tied weights, soft caps and recomputed activations; unequal numbers of prompts and tokens."""
    for rank in range(2):
        found = result(sharded, "families", rank)[family]
        assert found.pop("shards") == 1 + 2  # layers
        assert found == pytest.approx(dict.fromkeys(("completions", "logprobs", "gradients", "norm"), 0), abs=1e-10)


def test_what_does_not_work_is_refused_and_told_why(sharded):
    for rank in range(2):
        said = json.loads((sharded / f"refusals-{rank}.json").read_text())
        assert "LoRA does not go with sharded weights" in said["lora"]
        assert "use DDP" in said["lora"]
        assert "`tensor_parallel_size=2`" in said["split"]
        assert "data_parallel_size=N, tensor_parallel_size=1" in said["split"]
