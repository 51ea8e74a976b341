"""Two processes that are killed together right after a checkpoint, and gone on with: as if nothing had happened."""

import json

import pytest

from tests.integration import cut_ranks
from tests.integration.two_ranks import run_two_ranks


@pytest.fixture(scope="module")
def differences(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks("tests.integration.cut_ranks", folder)
    return json.loads((folder / "differences.json").read_text())


@pytest.mark.parametrize("name", map(cut_ranks.name_of, cut_ranks.CASES))
def test_all_results_are_those_of_the_uninterrupted_run(differences, name):
    assert differences[name] == ""
