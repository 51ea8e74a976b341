"""Two processes that are killed together right after a checkpoint, and gone on with: as if nothing had happened."""

import json
from pathlib import Path

import pytest

from tests.integration import cut_ranks
from tests.integration.two_ranks import run_two_ranks


def differences(folder: Path) -> dict[str, str]:
    run_two_ranks("tests.integration.cut_ranks", folder, timeout_s=900)
    return json.loads((folder / "differences.json").read_text())


def test_all_results_are_those_of_the_uninterrupted_run(tmp_path):
    assert differences(tmp_path) == dict.fromkeys(map(cut_ranks.name_of, cut_ranks.CASES), "")


@pytest.mark.learn
def test_more_algorithms_and_rhythms(tmp_path):
    (tmp_path / "longer").touch()
    assert differences(tmp_path) == dict.fromkeys(map(cut_ranks.name_of, cut_ranks.LONGER), "")
