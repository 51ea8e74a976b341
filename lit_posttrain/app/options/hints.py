"""What Hydra says of a mistyped override, with the name that was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from lit_posttrain.app.options.other_words import translated

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What these hold are arguments of classes that take more of them than the configuration names.
OPEN = {"trainer": "the Trainer", "algo": "the algorithm"}
READERS = {
    "model": "`model=local model.path={0}` takes the name of a model on the Hub, or a folder",
    "data": "`data=prompts data.path={0}` reads a data set of the Hub or a file, as do `instruct` and `preferences`",
}


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean `...`?', or nothing where no known name is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean `{matches[0]}`?" if matches else ""


def nearest_key(name: str, known: list[str]) -> str:
    """The hint for a dotted name: one like it beside it, else its last word elsewhere, else what there is beside it.

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
        return f" Did you mean `{parent}.{alike[0]}`?" if parent else f" Did you mean `{alike[0]}`?"
    groups = {key.rpartition(".")[0] for key in known}
    elsewhere = [key for key in known if key.rpartition(".")[2] == last and key not in groups]
    if elsewhere:
        return f" Did you mean `{elsewhere[0]}`?"
    return f" `{parent}` has: {', '.join(beside)}." if parent and beside else nearest(name, known)


def explain_composition_error(text: str, arguments: list[str]) -> str:
    """The message for a configuration that could not be composed.

    Args:
        text: what Hydra says of it.
        arguments: the overrides that it was made from.
    """
    missing_choice = re.search(r"Could not find '([^']+)'", text)
    if missing_choice:
        reader, _, name = missing_choice.group(1).partition("/")
        if reader in READERS and "/" in name and f"{reader}={name}" in arguments:
            return f"there is no `{reader}={name}`: {READERS[reader].format(name)}."
        group, _, choice = missing_choice.group(1).rpartition("/")
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        listed = f" There are: {', '.join(options)}." if options else ""
        if missing_choice.group(1) == "hydra/launcher/joblib":
            return "there is no `hydra/launcher=joblib`: `pip install 'lit-posttrain[sweep]'` brings it."
        return f"there is no `{group}={choice}`.{nearest(choice, options)}{listed}"
    missing_group = re.search(r"Could not override '([^']+)'", text)
    unknown = re.search(r"Key '([^']+)' is not in struct", text)
    unmerged = re.search(r"Error merging override ([^=]+)=", text)
    if "Config group override must be a string" in text:
        named = ", ".join(f"`{argument}`" for argument in arguments if re.fullmatch(r"[^.]+=null", argument))
        return f"{named}: a group needs one of its options, and null is none; leave it out."
    if missing_group:
        return _explain_missing(missing_group.group(1), text, arguments)
    if unmerged:
        name = unmerged.group(1)
        return f"`{name}` cannot be replaced by a value of that kind.{_options_of(name, _known_keys(arguments))}"
    if unknown:
        return f"there is no option `{unknown.group(1)}`.{nearest_key(unknown.group(1), _known_keys(arguments))}"
    return text


def _explain_missing(name: str, text: str, arguments: list[str]) -> str:
    """The message for an override of what is not there; `text` is Hydra's, which quotes it."""
    if name.startswith("model.lora.") and "model/lora=default" not in arguments:
        return f"`{name}` belongs to LoRA, which is off: add `model/lora=default`."
    known = _known_keys(arguments)
    if name not in known:
        ours = translated(name.rpartition(".")[2], known)
        if ours is not None and ours != name:
            return f"there is no option `{name}`; it is `{ours}` here. See `--cfg job` for all options."
        near = nearest_key(name, known)
        addition = "" if "Did you mean" in near else _addition(name)
        return f"there is no option `{name}`.{near}{addition} See `--cfg job` for all of them."
    if f"{name}={{" in text:
        return f"what is given for `{name}` has an option that it has not.{_options_of(name, known)}"
    return (
        f"`{name}` is not there any more: another option has taken the place of `{name.rpartition('.')[0]}`. "
        "Leave one of the two out."
    )


def _addition(name: str) -> str:
    """How an argument that the configuration does not name is given, where there may be one."""
    group, _, last = name.partition(".")
    if group == "callbacks" and last:
        return f" `+callbacks.{last.partition('.')[0]}={{_target_: ...}}` adds a callback."
    return f" `+{name}=...` gives {OPEN[group]} an argument that is not listed." if group in OPEN and last else ""


def _below(name: str, known: list[str]) -> list[str]:
    """The last words of the names that stand one below this one, `_target_` and its like left out."""
    words = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == name]
    return [word for word in words if word[0] != "_"]


def _options_of(name: str, known: list[str]) -> str:
    """' `name` has: ...', or nothing where nothing stands below it."""
    below = _below(name, known)
    return f" `{name}` has: {', '.join(below)}." if below else ""


def check_additions(arguments: list[str], groups: list[str]) -> None:
    """Refuse `+key=value` outside of the groups: Hydra adds any key, and nothing would read it.

    Args:
        arguments: the overrides of the command line.
        groups: the config groups that a choice was made of.

    Raises:
        ValueError: naming the option and the one that was probably meant.
    """
    for argument in arguments:
        added = re.match(r"\+\+?([^=@]+)", argument)
        if added is None or added.group(1).split(".")[0] in set(groups) - {"monitor"}:  # a group of plain numbers
            continue
        known = _known_keys(arguments)
        if added.group(1) not in known:
            raise ValueError(f"there is no option `{added.group(1)}`.{nearest_key(added.group(1), known)}")


def check_replaced(arguments: list[str], cfg: DictConfig, config_name: str) -> None:
    """Refuse the choice of an optimiser or a schedule in whose place a recipe puts its own.

    Args:
        arguments: the overrides of a run.
        cfg: the configuration that they make.
        config_name: of the primary configuration.

    Raises:
        ValueError: naming the recipe, and how to have the choice.
    """
    from hydra import compose

    for group in ("optim", "scheduler"):
        typed = next((a for a in arguments if a.startswith(f"{group}=")), None)
        if typed is None or any(a.lstrip("+").startswith(f"{group}._target_=") for a in arguments):
            continue
        target = compose(f"{group}/{typed.partition('=')[2]}")[group].get("_target_")
        built = cfg[group].get("_target_")
        if target is not None and built != target:
            choices = compose(config_name, arguments, return_hydra_config=True).hydra.runtime.choices
            raise ValueError(
                f"`{typed}` has no effect: `recipe={choices.get('recipe')}` puts {built} in its place. "
                "Leave it out; or leave that out, `~recipe`, and give its other numbers yourself."
            )


def _known_keys(arguments: list[str]) -> list[str]:
    """Every dotted key of the configuration that the valid group choices among the arguments make."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    choices = [a for a in arguments if re.fullmatch(r"[a-z_/]+=[A-Za-z0-9_]+", a)]
    GlobalHydra.instance().clear()
    cfg: DictConfig | None = None
    with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
        for overrides in (choices, []):
            try:
                cfg = compose("train", overrides)
                break
            except Exception:  # a choice is wrong too; the plain configuration still helps
                continue
    keys: list[str] = []

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                keys.append(f"{prefix}{key}")
                walk(value, f"{prefix}{key}.")

    if cfg is not None:
        walk(OmegaConf.to_container(cfg, resolve=False), "")
    return keys
