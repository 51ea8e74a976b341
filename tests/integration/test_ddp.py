"""Two processes do what one does, whatever share of the work each of them has."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import ranks
from tests.integration.two_ranks import run_two_ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of the jobs on one process."""
    folder = tmp_path_factory.mktemp("jobs") / "one_process"
    folder.mkdir()
    for name, job in ranks.JOBS.items():
        torch.save(job(folder / name), folder / f"{name}-0.pt")
    return folder


@pytest.fixture(scope="module")
def together(alone) -> Path:
    """The folder of the jobs on two processes; nothing may take longer than it must, least of all for ever."""
    folder = alone.parent / "two_processes"
    folder.mkdir()
    run_two_ranks("tests.integration.ranks", folder)
    return folder


def result(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def completions(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name / "completions.jsonl").read_text().splitlines()]


def assert_equal_gradients(got, want, *, atol):
    assert len(got) == len(want) > 0
    assert any(gradient.abs().max() > 1e-3 for gradient in want[0].values())
    for step, gradients in enumerate(want):
        for name, gradient in gradients.items():
            torch.testing.assert_close(got[step][name], gradient, atol=atol, rtol=0, msg=f"{step} {name}")


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "throughput/"))}


@pytest.mark.parametrize("algorithm", ranks.ALGORITHMS)
class TestTraining:
    """Unequal shares of prompts and tokens, a rank without prompts in every third rollout, two micro-batches."""

    def test_gradients_of_every_step_are_those_of_one_process(self, alone, together, algorithm):
        want = result(alone, f"{algorithm}-fp64")["gradients"]
        for rank in range(2):
            assert_equal_gradients(result(together, f"{algorithm}-fp64", rank)["gradients"], want, atol=1e-10)

    def test_the_first_gradient_in_single_precision(self, alone, together, algorithm):
        want, got = (result(folder, f"{algorithm}-fp32")["gradients"][:1] for folder in (alone, together))
        assert_equal_gradients(got, want, atol=2e-6)

    def test_metrics_are_those_of_one_process_on_every_rank(self, alone, together, algorithm):
        want = result(alone, f"{algorithm}-fp64")["metrics"]
        for rank in range(2):
            got = result(together, f"{algorithm}-fp64", rank)["metrics"]
            assert len(got) == len(want)
            for step, metrics in enumerate(want):
                assert measured(got[step]) == pytest.approx(measured(metrics), rel=1e-5, abs=1e-6), step

    def test_the_completions_file_is_that_of_one_process(self, alone, together, algorithm):
        """Every completion once, in the order of the prompts."""
        got, want = (completions(folder, f"{algorithm}-fp64") for folder in (together, alone))
        assert len(got) == len(want)
        for line, expected in zip(got, want, strict=True):
            advantage = expected.pop("advantage")
            assert line.pop("advantage") == pytest.approx(advantage, abs=1e-5)
            assert line.pop("penalty") == pytest.approx(expected.pop("penalty"), abs=1e-6)
            assert line == expected

    def test_completions_in_single_precision(self, alone, together, algorithm):
        got, want = (completions(folder, f"{algorithm}-fp32") for folder in (together, alone))
        equal = [a["completion"] == b["completion"] for a, b in zip(got, want, strict=True)]
        first = [line["rollout"] == 0 for line in want]
        assert all(same for same, in_first in zip(equal, first, strict=True) if in_first)
        assert sum(equal) >= 0.99 * len(equal)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_ranks_end_with_equal_weights(self, together, algorithm, dtype):
        first, second = (result(together, f"{algorithm}-{dtype}", rank)["weights"] for rank in range(2))
        initial = ranks.make_model(torch.float64 if dtype == "fp64" else torch.float32).state_dict()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
        assert any(not torch.equal(tensor, initial[name]) for name, tensor in first.items())


@pytest.mark.parametrize("job", ["unequal", "masked"])
def test_one_rank_s_completions_end_at_once_and_the_other_s_never(alone, together, job):
    """In `masked` the second rank has not a single token to learn from."""
    lines = completions(together, job)
    lengths = [[line["length"] for line in lines if line["prompt"][0] == kind] for kind in "cw"]
    assert max(lengths[0]) < ranks.MAX_NEW_TOKENS
    assert min(lengths[1]) == ranks.MAX_NEW_TOKENS
    want, got = (result(folder, job) for folder in (alone, together))
    assert_equal_gradients(got["gradients"], want["gradients"], atol=1e-10)
    for metrics, expected in zip(got["metrics"], want["metrics"], strict=True):
        assert measured(metrics) == pytest.approx(measured(expected), rel=1e-5, abs=1e-6)


def test_validation_does_not_depend_on_the_number_of_ranks(alone, together):
    want = result(alone, "validate")
    assert want["seven"] == pytest.approx(want["stock"], abs=1e-6)
    assert want["seven"] != pytest.approx(want["one"], abs=1e-3)
    for rank in range(2):
        got = result(together, "validate", rank)
        for name, scores in want.items():
            assert got[name] == pytest.approx(scores, abs=1e-6), name


def test_a_stock_dataloader_gives_every_prompt_once_in_an_epoch(together):
    lines = completions(together, "stock")
    rollouts = [[line["prompt"] for line in lines if line["rollout"] == number][::4] for number in range(8)]
    assert [len(prompts) for prompts in rollouts] == [2, 2, 2, 1] * 2
    epochs = [[prompt for rollout in half for prompt in rollout] for half in (rollouts[:4], rollouts[4:])]
    for epoch in epochs:
        assert Counter(epoch) == Counter(row["prompt"] for row in ranks.MIXED[:7])
    assert epochs[0] != epochs[1]
    metrics = [result(together, "stock", rank)["metrics"][-1]["val/reward"] for rank in range(2)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("step", [1, 4, 12])
def test_resuming_is_exact(together, step):
    """In the middle of a rollout, between two, and at the end of an epoch."""
    for rank in range(2):
        whole, resumed = result(together, "stopped", rank), result(together, f"resumed-{step}", rank)
        assert resumed["step"] == whole["step"] == 14
        assert len(resumed["gradients"]) == 14 - step
        for name, tensor in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], tensor), name


def test_between_two_rollouts_the_number_of_processes_may_change(alone, together, tmp_path):
    fewer = ranks.resume(tmp_path, together / "stopped" / "checkpoints" / "step=4.ckpt")
    for resumed, whole in (
        (fewer, result(together, "stopped")),
        (result(together, "joined"), result(alone, "stopped")),
    ):
        assert resumed["step"] == 14
        for name, tensor in whole["weights"].items():
            torch.testing.assert_close(resumed["weights"][name], tensor, atol=1e-5, rtol=0)


def test_in_the_middle_of_a_rollout_it_may_not(together, tmp_path):
    with pytest.raises(ValueError, match="in the middle of a rollout by 2 processes, this run has 1: resume with as"):
        ranks.resume(tmp_path, together / "stopped" / "checkpoints" / "step=1.ckpt")
    for rank in range(2):
        assert "by 1 processes, this run has 2" in json.loads((together / f"refused-{rank}.json").read_text())


def test_killed_together_and_gone_on_with_as_if_nothing_had_happened(together):
    """In three parts; what differs from the uninterrupted run is named."""
    assert json.loads((together / "killed-0.json").read_text()) == ""


@pytest.mark.parametrize("file", ["command-predict/predictions.jsonl", "command-validate/validation.json"])
def test_files_of_prediction_and_validation(alone, together, file):
    """Predictions in the order of the prompts, 7 of them in batches of 3."""
    assert (together / file).read_text() == (alone / file).read_text()
