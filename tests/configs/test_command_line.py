"""What the command line says and does before a run begins."""

import os
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from lit_posttrain.app import cli, run
from lit_posttrain.app.cli import main
from lit_posttrain.app.lifeline import HELD, ended_at_once
from tests.composing import CONF, compose_train

EXAMPLES = [
    "python train.py  ",
    "python train.py algo=grpo model=gpt2 data=gsm8k trainer=gpu",
    "python train.py data=prompts data.path=my.jsonl reward.path=my_rewards.py:fn",
    "python train.py pipeline=rlhf  ",
    "python train.py -m seed=0,1,2 optim.lr=1e-4,3e-4",
]


@pytest.fixture
def runs(monkeypatch):
    """The configurations that would have been run."""
    seen = []
    monkeypatch.setattr(run, "run", lambda cfg: seen.append(OmegaConf.to_container(cfg, resolve=True)))
    return seen


# Help.


@pytest.mark.parametrize("argument", ["--help", "--cfg job"])
def test_answers_without_torch(argument):
    program = f"""
import atexit, sys
sys.argv = ["lit-posttrain", *"{argument}".split()]
atexit.register(lambda: print("torch" in sys.modules, "hydra" in sys.modules, file=sys.stderr))
from lit_posttrain.app.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False True"
    assert ("Groups, chosen by" if argument == "--help" else "algo:\n  policy:") in done.stdout


def test_help_lists_groups_and_examples(command_line):
    status, printed, _ = command_line("--help")
    assert status == 0
    assert "data: alpaca, gridworld, gridworld_preferences" in printed
    assert "trainer: cpu, ddp, debug, fsdp, gpu" in printed
    assert [example for example in EXAMPLES if example not in printed] == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_help_examples_compose(example):
    overrides = [word for word in example.split()[2:] if word != "-m"]
    first = [override.split(",")[0] for override in overrides]
    assert OmegaConf.missing_keys(compose_train(*first)) == set()


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["algo=grop"], "there is no `algo=grop`. Did you mean `grpo`?"),
        (["model=Qwen/Qwen3-0.6B"], "there is no `model=Qwen/Qwen3-0.6B`: `model=local model.path=Qwen/Qwen3-0.6B`"),
        (["data=openai/gsm8k"], "there is no `data=openai/gsm8k`: `data=prompts data.path=openai/gsm8k` reads"),
        (["num_generations=4"], "there is no option `num_generations`; it is `algo.group_size` here."),
        (["algo.beta=0.1"], "there is no option `algo.beta`; it is `algo.kl_coef` here."),
        (["algo=dpo", "beta=0.1"], "there is no option `beta`; it is `algo.beta` here."),
        (["--max_steps", "10"], "without dashes; this one is `trainer.max_steps=10`."),
        (["--learning-rate=1e-4", "algo=sft"], "without dashes; this one is `optim.lr=1e-4`."),
        (["trainer.profiler=simple"], "`+trainer.profiler=...` adds it, since `lightning.pytorch.Trainer` takes it."),
        (["callbacks.ema=1"], "`+callbacks.ema={_target_: ...}` adds a callback."),
        (["model=gtp2", "algo.group_size=4"], "there is no `model=gtp2`. Did you mean `gpt2`?"),
        (
            ["data=gridworld_preferences", "data.path.shares={leaps:1}"],
            "what is given for `data.path.shares` has an option that it has not. `data.path.shares` has: longer, unf",
        ),
        (
            ["data=gridworld_preferences", "data.path.shares=[1,2]"],
            "`data.path.shares` cannot be replaced by a value of that kind. `data.path.shares` has: longer, unfini",
        ),
        (["pipeline=rlhf", "pipeline.stages.rn.gate=null"], "Did you mean `pipeline.stages.rm.gate`?"),
        (
            ["pipeline=rlhf", "pipeline.stages.rm.gate=null", "pipeline.stages.rm.gate.metric=val/loss"],
            "`pipeline.stages.rm.gate.metric` is not there any more: another option has taken the place of "
            "`pipeline.stages.rm.gate`.",
        ),
        (
            ["algo=ppo", "scheduler=constant"],
            "`scheduler=constant` has no effect: `recipe=tiny_ppo` puts transformers.get_wsd_schedule in its place. ",
        ),
        (["moddel=tiny"], "there is no option `moddel`. Did you mean `model`?"),
        (["algo.groupsize=4"], "there is no option `algo.groupsize`. Did you mean `algo.group_size`?"),
        (["optim.learning_rate=1"], "there is no option `optim.learning_rate`; it is `optim.lr` here."),
        (["algo.lr=1"], "there is no option `algo.lr`. Did you mean `optim.lr`?"),
        (["model.lora.r=8"], "`model.lora.r` belongs to LoRA, which is off: add `model/lora=default`."),
        (
            ["model/lora=default", "model.lora.rank=8"],
            "no option `model.lora.rank`. `model.lora` has: r, alpha, target_m",
        ),
        (["model/lora=defualt"], "there is no `model/lora=defualt`. Did you mean `default`?"),
        (["-m", "algo.groupsize=4,8"], "there is no option `algo.groupsize`. Did you mean `algo.group_size`?"),
        (["+algo.groupsize=4"], "there is no option `algo.groupsize`. Did you mean `group_size`?"),
        (["+max_steps=3"], "there is no option `max_steps`; it is `trainer.max_steps` here."),
        (["trainer.profilr=simple"], "there is no option `trainer.profilr`. Did you mean `+trainer.profiler`?"),
        (["callbacks.best_checkpoint.save_last=true"], "`+callbacks.best_checkpoint.save_last=...` adds it, since"),
        (["+algo.num_generations=4"], "there is no option `algo.num_generations`; it is `algo.group_size` here."),
        (["algo=ppo", "vf_coef=1"], "there is no option `vf_coef`; it is `algo."),
        (["trainer.logger=false"], "`trainer.logger` is taken: use the group `logger`."),
        (["recipe=tiny_pp"], "there is no `recipe=tiny_pp`. Did you mean `tiny_ppo`?"),
        (["tuned=tiny_ppo"], "there is no option `tuned`; it is `recipe` here."),
        (["--beta", "0.1"], "without dashes; this one is `algo.kl_coef=0.1`."),
        (["algo=dpo", "--beta", "0.1"], "without dashes; this one is `algo.beta=0.1`."),
        (["++monitor.metrics=val/success"], "there is no option `monitor.metrics`. Did you mean `monitor.metric`?"),
        (["mode=fitt"], "`mode` must be one of fit, validate, predict, got `fitt`. Did you mean `fit`?"),
        (["data=prompts", "reward.path=a.py:f"], "`data.path` must be given: add `data.path=...` to the command line."),
        (
            ["+callbacks.mine._target_=nowhere.Mine"],
            "`callbacks.mine._target_` must name what can be imported, got `now",
        ),
    ],
)
def test_mistake_ends_with_the_nearest_name(command_line, arguments, said):
    status, _, errors = command_line(*arguments)
    assert status == 1
    assert said in errors
    assert "Traceback" not in errors


def test_a_wrong_value_is_refused_without_torch_and_leaves_nothing(tmp_path):
    code = "import atexit, sys; from lit_posttrain.app.cli import main; sys.argv[1:] = ['algo.ratio=tokn']; "
    code += "atexit.register(lambda: print('torch' in sys.modules)); main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (1, "False"), done.stderr
    assert "`algo.ratio` must be one of token, sequence, got `tokn`." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_argument_of_the_library_is_named_as_an_option(command_line):
    status, printed, errors = command_line("algo=ppo", "algo.sampling.temperature=-1", "hydra.run.dir=here")
    assert status == 1
    assert "(0 = greedy). On the command line: `algo.sampling.temperature`.\n" in errors
    assert "recipe tiny_ppo: " in printed


def test_the_traceback_is_kept_in_the_folder_of_the_run(command_line, tmp_path):
    _, _, errors = command_line("algo.group_size=1", "hydra.run.dir=here")
    log = tmp_path / "here" / "train.log"
    assert f"The traceback is in {log}; set HYDRA_FULL_ERROR=1 to see it here." in errors
    assert "Traceback (most recent call last)" in log.read_text()
    assert "`group_size` must be >= 2, got 1" in log.read_text()


def test_a_traceback_that_cannot_be_kept_does_not_hide_the_error(monkeypatch, command_line, tmp_path):
    def broken(cfg):
        (tmp_path / "here" / "train.log").unlink()
        (tmp_path / "here" / "train.log").mkdir()  # as on a full disk, opening it fails
        raise ValueError("boom")

    monkeypatch.setattr(run, "run", broken)
    status, _, errors = command_line("hydra.run.dir=here")
    assert (status, "error: ValueError: boom\n\nFor the traceback set HYDRA_FULL_ERROR=1" in errors) == (1, True)


def test_the_traceback_is_shown_when_asked_for(monkeypatch, command_line):
    def broken(cfg):
        raise ValueError("boom")

    monkeypatch.setattr(run, "run", broken)
    assert command_line()[0] == 1
    with pytest.raises(ValueError, match="boom"):
        command_line(full_errors="1")


def test_what_is_not_the_users_mistake_is_not_hidden(monkeypatch, command_line):
    def broken(cfg):
        raise ZeroDivisionError

    monkeypatch.setattr(run, "run", broken)
    with pytest.raises(ZeroDivisionError):
        command_line()


# What is run.


def test_additions_that_something_reads_pass(command_line, runs):
    callback = "lightning.pytorch.callbacks.Timer"
    status, _, errors = command_line("+trainer.deterministic=1", f"+callbacks.timer._target_={callback}", "++seed=3")
    assert (status, runs[0]["seed"], runs[0]["trainer"]["deterministic"]) == (0, 3, 1), errors
    assert runs[0]["callbacks"]["timer"] == {"_target_": callback}


def test_a_sweep_runs_every_value(command_line, runs, tmp_path):
    status, _, errors = command_line("-m", "seed=0,1", "optim.lr=1e-4", "hydra.sweep.dir=sweep")
    assert status == 0, errors
    assert [(cfg["seed"], cfg["optim"]["lr"]) for cfg in runs] == [(0, 1e-4), (1, 1e-4)]
    assert [cfg["run_dir"] for cfg in runs] == [str(tmp_path / "sweep" / str(number)) for number in range(2)]
    assert runs[0]["names"] == {"algo": "grpo", "model": "tiny", "data": "gridworld"}


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["algo=grpo", "model=gpt2", "trainer=ddp"], ["path: gpt2", "strategy: ddp"]),
        (["experiment=dapo"], ["overlong_fraction: 0.2", "max_resample_batches: 9"]),
        (["experiment=rloo"], ["_target_: lit_posttrain.algos.rloo.RLOO", "kl_coef: 0.03"]),
        (["algo=rloo", "model=gpt2"], ["_target_: lit_posttrain.algos.rloo.RLOO", "kl_coef: 0.05"]),
        (["model=gpt2"], ["  lora: null"]),
        (
            ["model=gpt2", "model/lora=default"],
            ["path: gpt2", "    _target_: lit_posttrain.models.lora.Lora", "    r: 16"],
        ),
        (["model/lora=default", "model.lora.r=8"], ["path: tiny", "    r: 8", "    target_modules: all-linear"]),
        (["algo=reward_model", "model/lora=default", "model.lora.target_modules=[c_attn]"], ["    - c_attn"]),
        (["model/lora=none"], ["  lora: null"]),
        (["algo=reinforce_pp", "algo.baseline=group"], ["ReinforcePlusPlus", "baseline: group"]),
    ],
)
def test_forms_that_users_type(command_line, arguments, printed):
    status, job, errors = command_line(*arguments, "--cfg", "job")
    assert status == 0, errors
    assert [line for line in printed if line not in job] == []


def test_a_sweep_over_algorithms(command_line, runs):
    status, _, errors = command_line("-m", "algo=grpo,rloo", "seed=0,1", "logger=csv", "hydra.sweep.dir=sweep")
    assert status == 0, errors
    assert [(cfg["names"]["algo"], cfg["seed"]) for cfg in runs] == [("grpo", 0), ("grpo", 1), ("rloo", 0), ("rloo", 1)]
    assert [cfg["optim"]["lr"] for cfg in runs] == [3e-4, 3e-4, 6e-4, 6e-4]  # each with its own tuning for `tiny`


def test_another_application_can_include_the_configuration(command_line, runs, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "hydra: {searchpath: ['pkg://lit_posttrain.conf']}\ndefaults: [train, _self_]\ngreeting: hello\nseed: 7\n"
    )
    status, _, errors = command_line("-cd", str(tmp_path), "-cn", "mine", "algo.group_size=4", "greeting=bye")
    assert status == 0, errors
    (cfg,) = runs
    assert (cfg["greeting"], cfg["seed"], cfg["algo"]["rollouts"]["seed"], cfg["algo"]["group_size"]) == (
        "bye",
        7,
        7,
        4,
    )


def test_an_application_of_its_own_can_include_the_configuration(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "hydra: {searchpath: ['pkg://lit_posttrain.conf']}\ndefaults: [train, _self_]\ngreeting: hello\n"
    )
    (tmp_path / "mine.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base='1.3', config_path='.', config_name='mine')\n"
        "def main(cfg): print(cfg.greeting, cfg.algo._target_, cfg.names.model)\n"
        "main()\n"
    )
    command = [sys.executable, "mine.py", "algo.group_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["hello", "lit_posttrain.algos.grpo.GRPO", "tiny"]


def test_the_environment_is_left_as_it_was(monkeypatch, capsys):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "algo=nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert "nonsense" in capsys.readouterr().err


# Stopped by a signal while Lightning fits, which raises a SystemExit of its own.


@pytest.mark.parametrize(
    ("in_pipeline", "checkpoint", "said"),
    [
        (False, True, "terminated; go on with `lit-posttrain ckpt_path={folder}/sft/checkpoints/last.ckpt`"),
        (False, False, "terminated before the first checkpoint"),
        (True, True, "terminated; the pipeline's own command goes on with it, with hydra.run.dir={folder}"),
        (True, False, "terminated; the pipeline's own command goes on with it, with hydra.run.dir={folder}"),
    ],
)
def test_terminated(command_line, monkeypatch, tmp_path, in_pipeline, checkpoint, said):
    class Terminated(SystemExit):
        pass

    def terminate(cfg):
        if checkpoint:
            (tmp_path / "road" / "sft" / "checkpoints").mkdir()
            (tmp_path / "road" / "sft" / "checkpoints" / "last.ckpt").touch()
        raise Terminated

    monkeypatch.setattr(run, "run", terminate)
    monkeypatch.setattr(cli, "end_with_the_pipeline", lambda: None)
    if in_pipeline:
        monkeypatch.setenv(HELD, "stdin")
    status, _, errors = command_line("hydra.run.dir=road/sft")
    assert status == 143
    assert said.format(folder=tmp_path / "road") in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_ends_the_process_though_they_forget_it(capfd, number):
    child = os.fork()
    if child == 0:
        with ended_at_once(" before the first checkpoint"):
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            except BaseException:  # as numpy's C code does
                pass
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert capfd.readouterr().err == f"\n{word} before the first checkpoint\n"


def test_a_class_of_the_working_directory_can_be_named(tmp_path):
    """By the command that is installed, which Python does not start in the working directory."""
    (tmp_path / "mine.py").write_text("from lit_posttrain import GRPO\nclass Mine(GRPO):\n    pass\n")
    (tmp_path / "conf/algo").mkdir(parents=True)
    (tmp_path / "conf/algo/mine.yaml").write_text("defaults: [grpo, _self_]\n_target_: mine.Mine\n")
    program = "import sys; sys.path.remove(''); from lit_posttrain.app.cli import main; main()"
    options = ["-cd", "conf", "algo=mine", "recipe=tiny_grpo", "mode=validate", "logger=csv", "hydra.run.dir=run"]
    options += ["data.path.num_validation=2", "algo.validation.num_samples=1", "algo.sampling.max_new_tokens=4"]
    command = [sys.executable, "-c", program, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "val/reward" in done.stdout


@pytest.fixture
def own_folder(tmp_path):
    """A folder of configuration beside ours, with a variant of GRPO whose constructor hands down what it gets."""
    (tmp_path / "variant.py").write_text(
        "from lit_posttrain import GRPO\n"
        "class Variant(GRPO):\n"
        "    def __init__(self, policy, rewards, *, power: float = 1.0, **grpo):\n"
        "        super().__init__(policy, rewards, **grpo)\n"
    )
    (tmp_path / "own/algo").mkdir(parents=True)
    yaml = "defaults: [grpo, _self_]\n_target_: variant.Variant\npower: 1.0\n"
    (tmp_path / "own/algo/variant.yaml").write_text(yaml)
    return tmp_path


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("algo.group_size=4.5", "`algo.group_size` must be a whole number, got `4.5`"),
        ("algo.power=high", "`algo.power` must be a number, got `high`"),
        ("algo.ratio=tokens", "Did you mean `token`?"),
        ("algo.rollouts.num_minibatches=1.5", "`algo.rollouts.num_minibatches` must be a whole number"),
        ("algo.powr=2", "Did you mean `algo.power`?"),
        ("+algo.foo=1", "`algo.foo`"),
    ],
)
def test_a_variant_of_ones_own_is_checked_as_ours_are(own_folder, option, said):
    command = [sys.executable, str(CONF.parent / "train.py"), "-cd", "own", "algo=variant", option, "hydra.run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=own_folder)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (own_folder / "run").exists()
