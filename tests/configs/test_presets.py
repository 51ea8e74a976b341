"""The presets of the published variants: the paper's numbers, and no other difference from their algorithm."""

import warnings

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.composing import compose_train

# As printed in the papers; see the head of each file.
PAPERS = {
    "grpo_original": {
        "clip_high": 0.2,
        "kl_coef": 0.04,
        "kl_gradient": "k3",
        "aggregation": "seq-mean-token-mean",
    },
    "dapo": {"max_refills": 9, "overlong_fraction": 0.2},
    "dr_grpo": {"clip_high": 0.2, "scale": "none", "aggregation": "constant"},
    "gspo": {
        "ratio": "sequence",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "aggregation": "seq-mean-token-mean",
        "num_minibatches": 4,
    },
    "cispo": {"clipping": "weight", "clip_low": 1.0, "clip_high": 4.0},
}


PREFERENCES = {
    "ipo": {"loss": "ipo"},
    "simpo": {"loss": "simpo", "beta": 2.5, "margin": 1.375},
    "orpo": {"loss": "orpo"},
    "kto": {"loss": "kto"},
    "apo": {"loss": "apo_zero"},
}


def flat(cfg: DictConfig) -> dict:
    """Dotted keys and values, but for what names the run."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    found = {}

    def walk(node, prefix):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk(plain, "")
    return found


@pytest.mark.parametrize("preset", PAPERS)
def test_a_preset_differs_in_the_numbers_of_its_paper_only(preset):
    plain, changed = flat(compose_train("model=gpt2")), flat(compose_train("model=gpt2", f"experiment={preset}"))
    different = {name: value for name, value in changed.items() if plain.get(name) != value}
    assert different == {f"algo.{name}": value for name, value in PAPERS[preset].items()}
    assert set(plain) == set(changed)


@pytest.mark.parametrize("preset", PAPERS)
def test_a_preset_builds(preset):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the original has its KL beside scale="group", which warns
        module = instantiate(compose_train(f"experiment={preset}").algo, _convert_="all")
    assert {name: getattr(module, name) for name in PAPERS[preset]} == PAPERS[preset]


@pytest.mark.parametrize("preset", PAPERS)
def test_presets_for_tiny_are_compared_with_one_of_their_kind(preset):
    plain, changed = flat(compose_train("experiment=grpo")), flat(compose_train(f"experiment={preset}"))
    different = {name: value for name, value in changed.items() if plain.get(name) != value}
    assert different == {f"algo.{name}": value for name, value in PAPERS[preset].items()}


@pytest.mark.parametrize("preset", PREFERENCES)
def test_a_preset_of_preferences_differs_from_dpo_in_its_loss_only(preset):
    plain = flat(compose_train("model=gpt2", "algo=dpo"))
    changed = flat(compose_train("model=gpt2", f"experiment={preset}"))
    different = {name: value for name, value in changed.items() if plain.get(name) != value}
    if preset == "kto":
        assert different.pop("data.path._target_") == "lit_posttrain.tasks.gridworld.UnpairedGenerator"
    assert different == {f"algo.{name}": value for name, value in PREFERENCES[preset].items()}
    assert set(plain) == set(changed)


@pytest.mark.parametrize("preset", PREFERENCES)
def test_a_preset_of_preferences_builds(preset):
    module = instantiate(compose_train(f"experiment={preset}").algo, _convert_="all")
    assert module.loss_name == PREFERENCES[preset]["loss"]
    assert module.beta == PREFERENCES[preset].get("beta", 0.1)


def test_the_n_details_of_ppo():
    """As in the table of the paper's code, whatever suits the model."""
    for model in ("gpt2", "tiny"):
        cfg = compose_train(f"model={model}", "experiment=ppo_n_details")
        assert (cfg.optim.lr, cfg.algo.critic.lr, cfg.optim.eps) == (3e-6, 3e-6, 1e-5)
        assert (
            cfg.data.batch_size,
            cfg.algo.group_size,
            cfg.algo.rollouts.num_epochs,
            cfg.algo.rollouts.num_minibatches,
        ) == (
            512,
            1,
            4,
            1,
        )
        assert (cfg.algo.kl_coef, cfg.algo.critic.coef, cfg.algo.gae_lambda, cfg.algo.discount) == (
            0.05,
            0.1,
            0.95,
            1.0,
        )
        assert (cfg.algo.sampling.temperature, cfg.algo.sampling.max_new_tokens) == (0.7, 53)
        assert cfg.trainer.gradient_clip_val is None
        assert cfg.scheduler.num_warmup_steps == 0
        assert cfg.scheduler.num_training_steps == cfg.trainer.max_steps
    plain, changed = (
        flat(compose_train("model=gpt2", "algo=ppo")),
        flat(compose_train("experiment=ppo_n_details", "model=gpt2")),
    )
    different = {name for name, value in changed.items() if plain.get(name) != value}
    assert different == {
        "algo.optimizer.betas",
        "algo.sampling.max_new_tokens",
        "algo.sampling.temperature",
        "algo.critic.coef",
        "algo.critic.lr",
        "data.batch_size",
        "optim.betas",
        "trainer.gradient_clip_val",
    }
    assert instantiate(cfg.algo, _convert_="all").value_coef == 0.1


def test_the_preset_has_the_last_word_before_the_command_line():
    assert compose_train("experiment=dr_grpo").algo.scale == "none"  # tuned for tiny: batch
    assert compose_train("experiment=dr_grpo", "algo.scale=batch").algo.scale == "batch"
