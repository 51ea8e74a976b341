"""Two processes that are killed together right after a checkpoint, and gone on with: as if nothing had happened."""

import json

import pytest

from tests.integration import cut_ranks
from tests.integration.two_ranks import run_two_ranks


@pytest.mark.learn
def test_all_results_are_those_of_the_uninterrupted_run(tmp_path):
    run_two_ranks("tests.integration.cut_ranks", tmp_path, timeout_s=900)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert differences == dict.fromkeys(map(cut_ranks.name_of, cut_ranks.CASES), "")
