"""A folder belongs to one run: what a command may do in a folder that holds one, and what it must leave alone."""

import json
import os
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lit_posttrain.app import run
from lit_posttrain.app.errors import SET_HERE
from lit_posttrain.app.folder import claim as run_folder
from lit_posttrain.app.folder.files import is_of_run
from lit_posttrain.app.folder.parts import begin_part, end_part
from lit_posttrain.app.options.overrides import quote
from lit_posttrain.files.locks import FolderLock

STEPS = 10


@pytest.fixture
def runs(monkeypatch):
    """The folders of what was run; instead of training: the files of a run, with its seed in them."""
    seen = []

    def fake(cfg):
        seen.append(cfg.run_dir)
        folder = Path(cfg.run_dir)
        if cfg.mode != "fit":
            (folder / f"{cfg.mode}.json").write_text(str(cfg.seed))
            return
        resumes = cfg.ckpt_path is not None and is_of_run(cfg.ckpt_path, folder)
        begin_part(folder, step=STEPS * len(seen), overrides=list(HydraConfig.get().overrides.task), resumes=resumes)
        if not resumes:
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str(cfg.seed))
        (folder / "summary.json").write_text(json.dumps({"metrics": {}, "steps": cfg.seed, "wall_s": 1.0}))
        with (folder / "completions.jsonl").open("a") as file:
            file.write(f"{cfg.seed}\n")
        for export in ("export", "export_best"):
            (folder / export).mkdir(exist_ok=True)
            (folder / export / "model.safetensors").write_text(str(cfg.seed))
            (folder / export / "config.json").write_text(str(cfg.seed))
        end_part(folder, step=STEPS * (len(seen) + 1))

    monkeypatch.setattr(run, "run", fake)
    return seen


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# A folder that holds a run.


def test_the_same_command_again_is_refused_before_anything_is_written(command_line, runs, tmp_path):
    assert command_line("hydra.run.dir=run", "seed=1")[0] == 0
    before = content(tmp_path / "run")
    status, printed, errors = command_line("hydra.run.dir=run", "seed=2")
    assert (status, len(runs), printed) == (1, 1, "")
    assert content(tmp_path / "run") == before
    names = "`config.yaml`, `parts.json`, `metrics.csv`, `completions.jsonl`, `summary.json`, `checkpoints`, `export`, "
    assert errors.strip() == (
        f"error: ValueError: `{tmp_path}/run` holds a run already ({names}`export_best`): go on with it, "
        f"`ckpt_path={tmp_path}/run/checkpoints/last.ckpt`; give this run a folder of its own, `hydra.run.dir=...`; "
        "or replace what is there, `overwrite=true`."
    )


def test_overwrite_replaces_what_the_run_left_and_nothing_else(command_line, runs, tmp_path):
    callback = "+callbacks.steps={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: '{step}'}"
    assert command_line("hydra.run.dir=run", "seed=1", callback)[0] == 0
    folder = tmp_path / "run"
    left = ["checkpoints/step=3.ckpt", "checkpoints/last-v1.ckpt", "tensorboard/events.out.tfevents.1"]
    mine = ["notes.txt", "checkpoints/pretrained.ckpt", "export/model.gguf", "tensorboard/mine", "wandb/run-1/files"]
    mine += ["validation.json", "predictions.jsonl"]  # of another command, which writes them anew
    for name in [*left, *mine]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1")
    status, _, errors = command_line("hydra.run.dir=run", "seed=2", "overwrite=true")
    assert status == 0, errors
    now = content(folder)
    assert {name: now.pop(name) for name in mine} == dict.fromkeys(mine, b"1")
    assert not set(left) & set(now)
    assert now["completions.jsonl"] == b"2\n"
    assert [part["overrides"] for part in json.loads(now["parts.json"])] == [["seed=2", "overwrite=true"]]
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").seed == 2
    assert b"seed=1" not in b"".join(now.values())


def test_overwrite_does_not_remove_what_no_run_is_known_to_have_left(command_line, runs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: 1\n")
    status, _, errors = command_line("hydra.run.dir=run", "overwrite=no")
    assert (status, "`overwrite` must be true or false, got `no`." in errors) == (1, True)
    for arguments in ([], ["overwrite=true"], ["overwrite=true"]):
        status, _, errors = command_line("hydra.run.dir=run", *arguments)
        assert (status, runs) == (1, [])
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    said = f"`{tmp_path}/run` has `config.yaml`, which a run would replace: give this run a folder of its own, "
    said += "`hydra.run.dir=...`; or move them. `overwrite=true` removes what a run is known to have left."
    assert said in errors


def test_a_start_that_failed_does_not_block_its_folder(command_line, runs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "run", lambda cfg: (_ for _ in ()).throw(ValueError("a mistake")))
        assert command_line("hydra.run.dir=run")[0] == 1
    status, _, errors = command_line("hydra.run.dir=run")
    assert (status, len(runs)) == (0, 1), errors


def test_a_run_that_is_going_on_is_left_alone(command_line, runs, tmp_path):
    lock = FolderLock(tmp_path / "run")
    assert lock.take()
    for arguments in ([], ["overwrite=true"]):
        status, _, errors = command_line("hydra.run.dir=run", *arguments)
        assert (status, runs) == (1, [])
        said = f"a run is going on in `{tmp_path}/run` (process {os.getpid()} on "
        assert said in errors
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock.release()
    assert command_line("hydra.run.dir=run")[0] == 0


def test_a_run_holds_its_folder_until_it_ends(command_line, monkeypatch, tmp_path):
    free = []
    monkeypatch.setattr(run, "run", lambda cfg: free.append(FolderLock(tmp_path / "run").take()))
    assert command_line("hydra.run.dir=run")[0] == 0
    assert free == [False]
    monkeypatch.setattr(run, "run", lambda cfg: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command_line("hydra.run.dir=run")[0] == 130
    lock = FolderLock(tmp_path / "run")
    assert lock.take()
    lock.release()


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"])
def test_the_other_processes_of_a_run_share_its_folder_and_leave_its_options(
    command_line, runs, tmp_path, monkeypatch, variable
):
    assert command_line("hydra.run.dir=run", "seed=1")[0] == 0
    lock = FolderLock(tmp_path / "run")
    assert lock.take()
    before = content(tmp_path / "run" / ".hydra")
    monkeypatch.setenv(variable, "1")
    assert command_line("hydra.run.dir=run", "seed=2")[0] == 0
    assert command_line("ckpt_path=run/checkpoints/last.ckpt", "seed=2")[0] == 0
    assert runs == [str(tmp_path / "run")] * 3
    assert content(tmp_path / "run" / ".hydra") == before
    lock.release()


def test_a_process_that_lightning_launches_finds_the_folder(command_line, runs, tmp_path, monkeypatch):
    """Lightning puts quotes around the folder, whatever is in its name."""
    folder = f"""{tmp_path}/it's "x" \\"""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(SET_HERE, "1")
    status, _, errors = command_line(
        "seed=1", f'hydra.run.dir="{folder}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"
    )
    assert (status, runs) == (0, [folder]), errors


# Resuming.


@pytest.mark.parametrize("name", ["""it's "x y\"""", "a=b,c $5 {d} [e] $", "back\\slash\\", "läuft/中", "'q'"])
def test_a_run_resumes_in_its_folder_and_keeps_its_options(command_line, runs, tmp_path, name):
    folder = tmp_path / name
    status, _, errors = command_line(f"hydra.run.dir={quote(str(folder))}", "seed=1", "trainer.max_steps=5")
    assert status == 0, errors
    began = content(folder / ".hydra") | {"config": (folder / "config.yaml").read_bytes()}
    relative = os.path.relpath(folder / "checkpoints" / "last.ckpt")
    for number, sign in enumerate(("", "++"), start=2):
        status, _, errors = command_line(f"{sign}ckpt_path={quote(relative)}", f"seed={number}")
        assert status == 0, errors
        assert runs[-1] == str(folder)
        options = folder / ".hydra" / f"part_{number}"
        assert OmegaConf.load(options / "overrides.yaml")[-1] == f"seed={number}"
    now = content(folder / ".hydra") | {"config": (folder / "config.yaml").read_bytes()}
    assert {file: now[file] for file in began} == began
    parts = json.loads((folder / "parts.json").read_text())
    steps = [(part["part"], part["first_step"], part["last_step"]) for part in parts]
    assert steps == [(1, 10, 20), (2, 20, 30), (3, 30, 40)]
    assert parts[2]["overrides"][-1] == "seed=3"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name.split("/")[0]]


def test_a_list_of_parts_that_was_cut_is_named(command_line, runs, tmp_path):
    assert command_line("hydra.run.dir=run")[0] == 0
    (tmp_path / "run" / "parts.json").write_text('[{"part": 1')
    status, _, errors = command_line("ckpt_path=run/checkpoints/last.ckpt")
    assert status == 1
    assert f"`{tmp_path}/run/parts.json`, the list of a run's parts, cannot be read" in errors


def test_a_resume_that_was_refused_does_not_count(command_line, runs, tmp_path, monkeypatch):
    assert command_line("hydra.run.dir=run")[0] == 0
    resume = "ckpt_path=run/checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(run, "run", lambda cfg: (_ for _ in ()).throw(ValueError("a mistake")))
        assert command_line(resume, "seed=7")[0] == 1
    assert command_line(resume, "seed=8")[0] == 0
    assert [path.name for path in (tmp_path / "run" / ".hydra").glob("part*")] == ["part_2"]
    assert OmegaConf.load(tmp_path / "run" / ".hydra" / "part_2" / "config.yaml").seed == 8


def test_a_checkpoint_goes_on_elsewhere_where_asked_to(command_line, runs, tmp_path):
    assert command_line("hydra.run.dir=run")[0] == 0
    resume = "ckpt_path=run/checkpoints/last.ckpt"
    assert command_line(resume, "hydra.run.dir=other")[0] == 0
    assert runs[-1] == str(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "parts.json").read_text())[0]["part"] == 1
    status, _, errors = command_line(resume, "hydra.run.dir=other")
    assert (status, "holds a run already" in errors) == (1, True)
    for folder in (["hydra.run.dir=run"], []):
        status, _, errors = command_line(resume, "overwrite=true", *folder)
        assert status == 1
        assert "`overwrite=true` would remove the checkpoint to go on from" in errors
    (tmp_path / "plain.ckpt").write_text("")  # one that lies in no run's folder
    assert command_line("ckpt_path=plain.ckpt")[0] == 0
    assert "outputs" in runs[-1]


def test_a_name_that_hydra_cannot_have(command_line, runs, tmp_path):
    folder = tmp_path / "${x}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    status, _, errors = command_line(f"ckpt_path='{tmp_path}/\\${{x}}/checkpoints/last.ckpt'")
    assert (status, runs) == (1, [])
    assert f"`{folder}` has `${{` in its name, which Hydra takes for an interpolation: rename the folder" in errors


# Other modes.


@pytest.mark.parametrize("mode", ["validate", "predict"])
def test_other_modes_leave_a_run_as_it_is(command_line, runs, tmp_path, mode):
    assert command_line("hydra.run.dir=run", "seed=1")[0] == 0
    before = content(tmp_path / "run")
    lock = FolderLock(tmp_path / "run")
    assert lock.take()  # and do not wait for it
    status, _, errors = command_line("hydra.run.dir=run", "seed=2", f"mode={mode}")
    assert status == 0, errors
    now = content(tmp_path / "run")
    assert {name: now.pop(name) for name in before if name != "train.log"} == {
        name: data for name, data in before.items() if name != "train.log"
    }
    assert set(now) == {"train.log", f"{mode}.json"} | {
        f".hydra/{mode}/{name}.yaml" for name in ("config", "hydra", "overrides")
    }
    lock.release()


# Folders that cannot be had.


def test_folders_that_cannot_be_had(command_line, runs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    road = tmp_path / "road"
    road.mkdir()
    (road / "pipeline.json").write_text('{"pipeline": "rlhf"}')
    for folder, said in (
        ("file/run", f"nothing can be written into `{tmp_path}/file/run`: `{tmp_path}/file` is a file."),
        ("run", f"`{tmp_path}/run/checkpoints` is a file, and a run keeps its checkpoints there: move it, or give"),
        ("road", f"`{road}` is the folder of several runs (it has `pipeline.json`): give this run a folder of its own"),
    ):
        status, _, errors = command_line(f"hydra.run.dir={folder}")
        assert (status, runs) == (1, [])
        assert said in errors
        assert not list(tmp_path.rglob(".lock"))
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: False)
    for mode in ("fit", "validate"):
        status, _, errors = command_line("hydra.run.dir=new/run", f"mode={mode}")
        assert (status, runs) == (1, [])
        assert f"nothing can be written into `{tmp_path}/new/run`: `{tmp_path}` cannot be written to. Give" in errors
    assert not (tmp_path / "new").exists()


# Sweeps.


def test_a_sweep_has_a_folder_of_its_own(command_line, runs, tmp_path):
    sweep = ["-m", "seed=0,1", "hydra.sweep.dir=sweep"]
    status, _, errors = command_line(*sweep)
    assert status == 0, errors
    before = content(tmp_path / "sweep")
    status, _, errors = command_line(*sweep)
    assert (status, len(runs)) == (1, 2)
    assert f"`{tmp_path}/sweep` holds a sweep already (`.jobs`, `comparison.csv`, `multirun.yaml`): give this" in errors
    assert content(tmp_path / "sweep") == before
    status, _, errors = command_line("hydra.run.dir=sweep")
    assert (status, "is the folder of several runs (it has `.jobs`)" in errors) == (1, True)
    status, _, errors = command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep/0")
    assert (status, "is the folder of a run" in errors) == (1, True)

    (tmp_path / "sweep" / "notes.txt").touch()
    (tmp_path / "sweep" / "1" / "notes.txt").touch()
    status, _, errors = command_line("-m", "seed=5", "hydra.sweep.dir=sweep", "overwrite=true")
    assert status == 0, errors
    assert [path.name for path in (tmp_path / "sweep" / "1").iterdir()] == ["notes.txt"]
    assert (tmp_path / "sweep" / "notes.txt").exists()
    assert (tmp_path / "sweep" / "0" / "completions.jsonl").read_text() == "5\n"


def test_two_jobs_of_a_sweep_do_not_share_a_folder(command_line, runs, tmp_path):
    status, printed, _ = command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=same")
    assert (status, len(runs)) == (1, 1)
    assert "sweep/same` holds a run already" in printed
    assert (tmp_path / "sweep" / "same" / "completions.jsonl").read_text() == "0\n"


def test_a_sweep_and_its_jobs_are_held_while_they_run(command_line, monkeypatch, tmp_path):
    free = []

    def fake(cfg):
        free.extend(FolderLock(folder).take() for folder in (tmp_path / "sweep", Path(cfg.run_dir)))

    monkeypatch.setattr(run, "run", fake)
    assert command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep")[0] == 0
    assert free == [False] * 4
    for folder in (tmp_path / "sweep", tmp_path / "sweep" / "0"):
        lock = FolderLock(folder)
        assert lock.take()
        lock.release()
