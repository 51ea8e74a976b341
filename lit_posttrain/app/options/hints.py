"""What is said of a mistyped override, with the name that was probably meant."""

import difflib
import os
import re
import sys
from importlib.resources import files
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.lifeline import HELD
from lit_posttrain.app.options.overrides import dotted, leaves
from lit_posttrain.app.options.schema import Argument, arguments
from lit_posttrain.app.options.words import VALUES, WORDS, translated

# Arguments of the Trainer that have a place of their own in the configuration.
GIVEN_TO_TRAINER = {
    "callbacks": "the group `callbacks`, as in `+callbacks.mine._target_=package.Mine`",
    "default_root_dir": "`hydra.run.dir`",
    "logger": "the group `logger`",
    "val_check_interval": "`val_every_steps`, which counts optimiser steps",
}
READERS = {
    "model": "`model=local model.path={0}` takes the name of a model on the Hub, or a folder",
    "data": "`data=prompts data.path={0}` reads a data set of the Hub or a file, as do `instruct` and `preferences`",
}


def nearest(name: str, known: list[str]) -> str:
    """Return ' Did you mean `...`?', or nothing where no known name is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean `{matches[0]}`?" if matches else ""


def nearest_key(name: str, known: list[str]) -> str:
    """Return the hint for a dotted name: one like it beside it, its last word elsewhere, or all that stands beside it.

    >>> known = ["optim", "optim.lr", "optim.eps", "algo", "algo.clip_low"]
    >>> nearest_key("algo.clip_lo", known), nearest_key("algo.lr", known), nearest_key("optim.learning_rate", known)
    (' Did you mean `algo.clip_low`?', ' Did you mean `optim.lr`?', ' `optim` has: lr, eps.')
    """
    parent, _, last = name.rpartition(".")
    grandparent, _, middle = parent.rpartition(".")
    if grandparent in known and parent not in known:  # not the last word is wrong but the one before
        alike = difflib.get_close_matches(middle, _below(grandparent, known), n=1, cutoff=0.5)
        if alike:
            return f" Did you mean `{grandparent}.{alike[0]}.{last}`?"
    beside = _below(parent, known)
    alike = difflib.get_close_matches(last, beside, n=1, cutoff=0.6)
    if alike:
        return f" Did you mean `{f'{parent}.{alike[0]}'.lstrip('.')}`?"
    groups = {key.rpartition(".")[0] for key in known}
    elsewhere = [key for key in known if key.rpartition(".")[2] == last and key not in groups]
    if elsewhere:
        return f" Did you mean `{elsewhere[0]}`?"
    return f" `{parent}` has: {', '.join(beside)}." if parent and beside else nearest(name, known)


def explain_composition_error(text: str, given: list[str]) -> str:
    """Return the message for a configuration that could not be composed.

    Args:
        text: what Hydra says of it.
        given: the overrides that it was made from.
    """
    if choice := re.search(r"Could not find '([^']+)'", text):
        return _no_choice(choice.group(1), re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE), given)
    if "Config group override must be a string" in text:
        named = ", ".join(f"`{override}`" for override in given if re.fullmatch(r"[^.]+=null", override))
        return f"{named}: a group needs one of its options, and null is none; leave it out."
    if unmerged := re.search(r"Error merging override ([^=]+)=", text):
        name = unmerged.group(1)
        return f"`{name}` cannot be replaced by a value of that kind.{_has(name, dotted(composed_with(given)))}"
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _no_option(unknown.group(1) or unknown.group(2), text, given)
    return text


def _no_choice(choice: str, there: list[str], given: list[str]) -> str:
    """The message for a choice that its group does not have."""
    reader, _, name = choice.partition("/")
    if reader in READERS and "/" in name and f"{reader}={name}" in given:
        return f"there is no `{reader}={name}`: {READERS[reader].format(name)}."
    if choice == "hydra/launcher/joblib":
        return "there is no `hydra/launcher=joblib`: `pip install 'lit-posttrain[sweep]'` brings it."
    group, _, name = choice.rpartition("/")
    listed = f" There are: {', '.join(there)}." if there else ""
    return f"there is no `{group}={name}`.{nearest(name, there)}{listed}"


def _no_option(name: str, text: str, given: list[str]) -> str:
    """The message for an override of what is not there; `text` is Hydra's, which quotes it."""
    if name.startswith("model.lora.") and "model/lora=default" not in given:
        return f"`{name}` belongs to LoRA, which is off: add `model/lora=default`."
    cfg = composed_with(given)
    known = dotted(cfg)
    if name not in known:
        return no_option(name, cfg)
    if f"{name}={{" in text:
        return f"what is given for `{name}` has an option that it has not.{_has(name, known)}"
    return (
        f"`{name}` is not there any more: another option has taken the place of `{name.rpartition('.')[0]}`. "
        "Leave one of the two out."
    )


def no_option(name: str, cfg: DictConfig) -> str:
    """Return the message for an option that is not there: its name here, how it is added, or the nearest one.

    Args:
        name: dotted, as it was typed.
        cfg: the configuration without it.
    """
    known, all_of_them = dotted(cfg), " See `--cfg job` for all options."
    ours = translated(name, known)
    if ours is not None:
        return f"there is no option `{name}`; it is `{ours}` here.{all_of_them}"
    parent, _, last = name.rpartition(".")
    target, taken = _taken_by(parent, cfg)
    if parent == "trainer" and last in GIVEN_TO_TRAINER:
        return f"`{name}` is taken: use {GIVEN_TO_TRAINER[last]}."
    if last in taken:
        return f"there is no option `{name}`: `+{name}=...` adds it, since `{target}` takes it.{all_of_them}"
    near = nearest_key(name, known)
    if "Did you mean" not in near:
        if alike := difflib.get_close_matches(last, taken, n=1, cutoff=0.6):
            near = f" Did you mean `+{parent}.{alike[0]}`?"
        elif parent == "callbacks":
            near += f" `+{name}={{_target_: ...}}` adds a callback."
    return f"there is no option `{name}`.{near}{all_of_them}"


def _taken_by(parent: str, cfg: DictConfig) -> tuple[str, dict[str, Argument]]:
    """The target of a node, and the arguments that it takes beside those that have a place of their own."""
    node = OmegaConf.select(cfg, parent) if parent else None
    target = str(node.get("_target_", "")) if isinstance(node, DictConfig) else ""
    taken = (arguments(target) if target else None) or {}
    return target, {name: each for name, each in taken.items() if parent != "trainer" or name not in GIVEN_TO_TRAINER}


def _below(name: str, known: list[str]) -> list[str]:
    """The last words of the names that stand one below this one, `_target_` and its like left out."""
    words = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == name]
    return [word for word in words if word[0] != "_"]


def _has(name: str, known: list[str]) -> str:
    """' `name` has: ...', or nothing where nothing stands below it."""
    below = _below(name, known)
    return f" `{name}` has: {', '.join(below)}." if below else ""


def check_flags(typed: list[str]) -> None:
    """Refuse `--max_steps 10`: options are written otherwise here, and some are called otherwise.

    Args:
        typed: the arguments of the command line.

    Raises:
        ValueError: that says what to write instead.
    """
    for number, argument in enumerate(typed):
        flag = re.fullmatch(r"--([a-z0-9_-]+)(?:=(.*))?", argument)
        word = flag.group(1).replace("-", "_") if flag else ""
        if flag is None or word not in WORDS:
            continue
        following = typed[number + 1] if number + 1 < len(typed) else ""
        value = flag.group(2) or (following if following and "=" not in following and following[0] != "-" else "...")
        option = translated(word, dotted(composed_with(typed))) or (word if word in WORDS[word] else WORDS[word][0])
        raise ValueError(
            f"`{argument}`: options are written `name=value` here, without dashes; this one is "
            f"`{option}={VALUES.get(word, value)}`."
        )


def check_given(config: DictConfig, cfg: DictConfig) -> None:
    """Refuse overrides that nothing would read, and choices that something else replaces.

    Args:
        config: Hydra's own node of a job.
        cfg: the configuration of the job.

    Raises:
        ValueError: naming the override, and what to write instead.
    """
    check_additions(list(config.overrides.task), list(config.runtime.choices))
    check_replaced(list(config.overrides.task), cfg, str(config.job.config_name))
    typed = [override for override in config.overrides.task if override.startswith("recipe=")]
    if typed and HELD not in os.environ and applied_recipe(typed[-1].partition("=")[2]) is None:  # Hydra passes over it
        there = GlobalHydra.instance().config_loader().get_group_options("recipe")
        raise ValueError(_no_choice(typed[-1].replace("=", "/"), there, []))


def check_additions(given: list[str], groups: list[str]) -> None:
    """Refuse `+key=value` outside of the groups: Hydra adds any key, and nothing would read it.

    Args:
        given: the overrides of the command line.
        groups: the config groups that a choice was made of.

    Raises:
        ValueError: naming the option and the one that was probably meant.
    """
    for added in filter(None, (re.match(r"\+\+?([^=@]+)", override) for override in given)):
        name, cfg = added.group(1), composed_with(given)
        parent, _, last = name.rpartition(".")
        if name in dotted(cfg) or last in _taken_by(parent, cfg)[1]:
            continue
        of_a_group = name.split(".")[0] in set(groups) - {"monitor"}  # which has plain numbers
        if not of_a_group or translated(name, dotted(cfg)) is not None:
            raise ValueError(no_option(name, cfg))


def check_replaced(given: list[str], cfg: DictConfig, config_name: str) -> None:
    """Refuse the choice of an optimiser or a schedule in whose place a recipe puts its own.

    Args:
        given: the overrides of a run.
        cfg: the configuration that they make.
        config_name: of the primary configuration.

    Raises:
        ValueError: naming the recipe, and how to have the choice.
    """
    for group in ("optim", "scheduler"):
        typed = next((override for override in given if override.startswith(f"{group}=")), None)
        if typed is None or any(override.lstrip("+").startswith(f"{group}._target_=") for override in given):
            continue
        target = compose(f"{group}/{typed.partition('=')[2]}")[group].get("_target_")
        built = cfg[group].get("_target_")
        if target is not None and built != target:
            choices = compose(config_name, given, return_hydra_config=True).hydra.runtime.choices
            raise ValueError(
                f"`{typed}` has no effect: `recipe={choices.get('recipe')}` puts {built} in its place. "
                "Leave it out; or leave that out, `~recipe`, and give its other numbers yourself."
            )


def composed_with(given: list[str]) -> DictConfig:
    """The configuration that the valid group choices among some overrides make."""
    choices = [override for override in given if re.fullmatch(r"[a-z_/]+=[A-Za-z0-9_]+", override)]
    choices = [choice for choice in choices if files("lit_posttrain.conf").joinpath(choice.split("=")[0]).is_dir()]
    if (own := own_folder(sys.argv[1:])) is not None:
        choices.append(f"hydra.searchpath=['file://{Path(own).absolute()}']")
    application = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
            try:
                return compose("train", choices)
            except Exception:  # a choice is wrong too; the plain configuration still helps
                return compose("train")
    finally:
        GlobalHydra.instance().hydra = application


def own_folder(typed: list[str]) -> str | None:
    """Find the folder of configuration that a user has given beside ours.

    >>> own_folder(["-cd", "conf", "algo=mine"]), own_folder(["--config-dir=mine"]), own_folder(["algo=ppo"])
    ('conf', 'mine', None)
    """
    for place, word in enumerate(typed):
        flag, given, value = word.partition("=")
        if flag in ("-cd", "--config-dir"):
            return value if given else next(iter(typed[place + 1 :]), None)
    return None


def applied_recipe(name: str) -> str | None:
    """What is said of a recipe when it is applied, as "recipe tiny_ppo: 13 options"; None where there is none."""
    try:
        options = leaves(OmegaConf.to_container(compose(f"recipe/{name}"), resolve=False))
    except MissingConfigException:
        return None
    return f"recipe {name}: {len(options)} options"
