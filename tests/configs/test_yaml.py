"""Every YAML composes and builds what it names, and its numbers are the defaults of what it builds."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.algos.dpo import DPO
from lit_posttrain.algos.grpo import GRPO
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.models.networks.reward import RewardNetwork
from tests.composing import CONF, choices, compose_train
from tests.conftest import VOCAB

# What has no number, so that a YAML names it by an interpolation or not at all.
OBJECTS = {"policy", "model", "rewards", "tokenizer", "scores", "optimizer", "scheduler"}
REQUIRED = {"path"}
USERS = {  # what only the user can give
    "data.path": "/a/file.jsonl",
    "model.path": "/a/folder",
    "reward.path": "lit_posttrain.rewards.gsm8k:exact_match",
}


def given(cfg: DictConfig) -> DictConfig:
    """With values for whatever the user has to give, and no device that is not there."""
    if cfg.trainer.accelerator == "gpu":
        cfg.trainer.accelerator = "cpu"
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, USERS[key])
    return cfg


def targets(node: DictConfig, path: str = "") -> list[str]:
    """Dotted names of the outermost nodes that name a target."""
    if "_target_" in node:
        return [path]
    found = []
    for key in node:
        if not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            found += targets(node[key], f"{path}.{key}".lstrip("."))
    return found


def build(cfg: DictConfig, path: str) -> None:
    """Instantiate a node; what Hydra leaves half-called gets what a module calls it with."""
    made = instantiate(OmegaConf.select(cfg, path), _convert_="all")
    if path == "optim":
        assert isinstance(made([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)
    elif path == "scheduler":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        assert isinstance(made(optimizer), torch.optim.lr_scheduler.LRScheduler)
    else:
        assert type(made).__name__ != "partial"


def exported_reward_model(folder: Path, make_model) -> str:
    """A reward model as its training leaves it."""
    RewardNetwork.from_causal_lm(make_model("gpt2"), pad_id=0, vocab_size=VOCAB).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("group", "option"), choices())
def test_option_composes_and_builds(group, option, tmp_path, make_model):
    of_algo = [f"algo={option.removeprefix('tiny_').removeprefix('random_')}"] if group == "recipe" else []
    cfg = given(compose_train(*of_algo, f"{group}={option}", run_dir=tmp_path))
    if cfg.reward["_target_"].endswith("load_reward_model"):
        cfg.reward.path = exported_reward_model(tmp_path, make_model)
    nodes = targets(cfg)
    assert {"algo", "data", "model", "reward", "optim", "scheduler", "trainer"} <= set(nodes)
    check_config(cfg)
    for path in nodes:
        build(cfg, path)


def test_optimizer_and_schedule_of_dpo_are_those_of_none(make_model, word_tokenizer):
    module = DPO(make_model("gpt2"), tokenizer=word_tokenizer)
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    want = module.default_optimizer()(parameters)
    cfg = compose_train("algo=dpo", "model=gpt2")
    got = instantiate(cfg.optim)(parameters)
    assert type(got) is type(want)
    assert got.defaults == want.defaults
    assert cfg.scheduler.num_warmup_steps == 0.1 * cfg.trainer.max_steps


def test_an_option_with_a_wrong_key_is_noticed():
    cfg = given(compose_train("+algo.groupsize=4"))
    with pytest.raises(Exception, match="unexpected keyword argument 'groupsize'"):
        build(cfg, "algo")


def states_all(folder: str) -> list[str]:
    """The YAMLs of a folder that state every option of their target: those whose path is the user's to give."""
    files = sorted((CONF / folder).rglob("*.yaml"))
    loaded = {str(f.relative_to(CONF)): OmegaConf.load(f) for f in files}
    every = folder != "data"
    return [name for name, cfg in loaded.items() if "_target_" in cfg and (every or OmegaConf.is_missing(cfg, "path"))]


@pytest.mark.parametrize("file", [*states_all("algo"), *states_all("data"), *states_all("model")])
def test_numbers_are_the_defaults_of_the_constructor(file):
    group = Path(file).parts[0]
    cfg = OmegaConf.create({"seed": OmegaConf.load(CONF / "train.yaml").seed, group: OmegaConf.load(CONF / file)})
    cfg[group].pop("defaults", None)
    compare(cfg[group], file)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_a_model_is_its_path(name):
    """What all models have stands in one file."""
    own = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    if name != "local":
        assert own.pop("defaults") == ["local", "_self_"]
        assert set(own) == {"path", *(["random_init"] if name == "tiny_random" else [])}


def compare(node: DictConfig, file: str) -> None:
    """A node against the signature of its target, and what it holds against theirs."""
    parameters = dict(inspect.signature(get_object(node["_target_"])).parameters)
    objects = OBJECTS if file.startswith("algo") else set()
    assert set(parameters) - objects == set(node) - objects - {"_target_"}
    for name in sorted(set(node) - objects - REQUIRED - {"_target_"}):
        if isinstance(node[name], DictConfig) and "_target_" in node[name]:
            compare(node[name], file)
        else:
            want = parameters[name].default
            assert node[name] == want, f"{file}: {name}"
            assert type(node[name]) is type(want), f"{file}: {name}"


@pytest.fixture
def grpo(make_model, word_tokenizer):
    """Build GRPO with or without an optimiser and a schedule of its own."""

    def make(**arguments):
        module = GRPO(
            make_model("gpt2"), lambda completions: [0.0 for _ in completions], tokenizer=word_tokenizer, **arguments
        )
        module.configure_model()
        return module

    return make


def test_optimizer_and_schedule_are_those_of_none(grpo):
    files = {"optimizer": "optim/adamw.yaml", "scheduler": "scheduler/constant.yaml"}
    configured = grpo(**{name: instantiate(OmegaConf.load(CONF / file)) for name, file in files.items()})
    got, want = rates_and_settings(configured), rates_and_settings(grpo())
    assert got == want
    assert got["settings"]["weight_decay"] == 0.0
    assert got["rates"][:2] == pytest.approx([1e-7, 1.9e-7])
    assert got["rates"][10:] == pytest.approx([1e-6] * 5)


def rates_and_settings(module: GRPO) -> dict:
    """The kind and settings of the optimiser, and the learning rate of 15 steps."""
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return {"kind": type(optimizer), "settings": settings, "rates": rates}
