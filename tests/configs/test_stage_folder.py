"""What the folder of a stage says of earlier starts."""

from pathlib import Path

import pytest

from lit_posttrain.app.pipeline.folder import StageFolder

ORIGIN = {"config": {"optim": {"lr": 0.1}, "seed": 0}, "inputs": {"sft": "a"}}


def begun(path: Path, *, checkpoint: bool, done: bool = False) -> StageFolder:
    """A folder as a run of `ORIGIN` leaves it, killed or done."""
    folder = StageFolder(path)
    assert folder.prepare(ORIGIN, ["algo=sft"]) is None
    (path / "completions.jsonl").write_text("half")
    if checkpoint:
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.touch()
    if done:
        (path / "summary.json").write_text('{"weights_sha256": "b"}')
        folder.export.mkdir()
    return folder


def test_a_run_that_ended_is_done_for_its_origin_alone(tmp_path):
    folder = begun(tmp_path / "rm", checkpoint=True, done=True)
    assert folder.is_done(ORIGIN)
    assert not folder.is_done(ORIGIN | {"inputs": {"sft": "other"}})
    assert not begun(tmp_path / "killed", checkpoint=True).is_done(ORIGIN)


def test_what_was_killed_goes_on_from_its_checkpoint(tmp_path):
    folder = begun(tmp_path / "rm", checkpoint=True)
    assert folder.prepare(ORIGIN, []) == tmp_path / "rm" / "checkpoints" / "last.ckpt"
    assert (tmp_path / "rm" / "completions.jsonl").is_file()


def test_what_has_no_checkpoint_is_begun_anew(tmp_path):
    folder = begun(tmp_path / "rm", checkpoint=False)
    assert folder.prepare(ORIGIN, []) is None
    assert [path.name for path in folder.path.iterdir()] == ["stage.json"]


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"config": {"optim": {"lr": 0.2}, "seed": 0}, "inputs": {"sft": "a"}}, "optim.lr: 0.1 -> 0.2"),
        ({"config": ORIGIN["config"], "inputs": {"sft": "b"}}, "sft: other weights"),
    ],
)
def test_what_was_made_otherwise_is_kept_beside_and_it_is_said_why(tmp_path, caplog, origin, said):
    for number in (1, 2):
        folder = begun(tmp_path / "rm", checkpoint=True, done=True) if number == 1 else StageFolder(tmp_path / "rm")
        assert folder.prepare(origin if number == 1 else ORIGIN, []) is None
        assert (tmp_path / f"rm.{number}").is_dir()
    assert (tmp_path / "rm.1" / "summary.json").is_file()
    assert f"is kept as {tmp_path / 'rm.1'}:\n  {said}" in caplog.text


def test_files_of_nobody_s_stage_are_kept_beside(tmp_path, caplog):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "mine.txt").touch()
    StageFolder(tmp_path / "rm").prepare(ORIGIN, [])
    assert (tmp_path / "rm.1" / "mine.txt").is_file()
    assert "it is no stage of a pipeline" in caplog.text
