"""What the pages in docs/ show is right: classes train, names and links are there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer

import lit_posttrain
from lit_posttrain import Sampling
from lit_posttrain.modules.online import OnlineModule, TokenLossInputs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OWN = (ROOT / "docs" / "own_algorithm.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def shown() -> dict[str, Any]:
    """What the Python blocks of the page define."""
    names: dict[str, Any] = {}
    for block in blocks(OWN, "python"):
        exec(block, names)  # it is ours
    return names


@pytest.mark.parametrize(("name", "arguments"), [("RankReinforce", {}), ("PowerGRPO", {"power": 1.0})])
def test_an_algorithm_of_the_page_trains_on_its_data(shown, name, arguments):
    def reward(completions, answer):
        return [float(str(number) in text) - len(text) for text, number in zip(completions, answer, strict=True)]

    module = shown[name]("tiny", reward, group_size=4, sampling=Sampling(max_new_tokens=4), **arguments)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, **quiet)
    module.configure_model()
    before = [parameter.detach().clone() for parameter in module.policy.parameters()]
    trainer.fit(module, shown["MyPrompts"]())
    after = list(module.policy.parameters())
    assert any(not torch.equal(was, now) for was, now in zip(before, after, strict=True))
    assert module.hparams["group_size"] == 4
    assert {name: module.hparams[name] for name in arguments} == arguments


def test_the_configuration_of_the_page_is_that_of_the_example():
    shown, *_ = (yaml.safe_load(block) for block in blocks(OWN, "yaml"))
    example = (ROOT / "examples/conf/algo/my_algorithm.yaml").read_text(encoding="utf-8")
    assert shown == yaml.safe_load(example)


def test_every_hook_of_the_page_is_there():
    table = OWN[OWN.index("## The hooks") : OWN.index("`inputs` is a")]
    names = re.findall(r"^\| `(\w+)", table, flags=re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not hasattr(OnlineModule, name)] == []
    fields = re.findall(r"^\| `(\w+)` \|", OWN[OWN.index("`inputs` is a") :], flags=re.MULTILINE)
    assert set(fields) == set(TokenLossInputs.__dataclass_fields__) - {"values"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_rooms_of_the_page_are_those_of_the_package():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| room |") : page.index("`import lit_posttrain` imports")]
    rooms = set(re.findall(r"`(\w+)/`", re.sub(r"\|[^|]*\|$", "", table, flags=re.MULTILINE)))
    package = Path(lit_posttrain.__file__).parent
    assert {path.name for path in package.iterdir() if (path / "__init__.py").is_file()} <= rooms
