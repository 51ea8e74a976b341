"""Names and values of options: what an override sets, how a text is given as a value, what a configuration has."""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf


def option(override: str) -> str:
    """Return the dotted name that an override sets.

    >>> option("+trainer.benchmark=true"), option("model/lora=default"), option("data@data.path.preferences=hh_rlhf")
    ('trainer.benchmark', 'model.lora', 'data.path.preferences')
    """
    name = override.lstrip("+~").partition("=")[0]
    return name.rpartition("@")[2].replace("/", ".")


def quote(text: str) -> str:
    r"""Write a text as a value of Hydra's grammar: in quotes unless it is plain, a quote in it escaped.

    >>> print(quote("/runs/sft"), quote("it's"))
    /runs/sft 'it\'s'
    """
    return text if re.fullmatch(r"[\w./-]*[A-Za-z_/][\w./-]*", text, flags=re.ASCII) else in_quotes(text)


def in_quotes(text: str) -> str:
    """Put a text in single quotes, those in it escaped."""
    return QuotedString(text, Quote.single).with_quotes()


def dotted(cfg: DictConfig) -> list[str]:
    """List every dotted name of a configuration, of groups and of options."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{key}"
            yield from walk(value, f"{prefix}{key}.")

    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted names and values of the options of a plain configuration, in which a list is one value.

    >>> leaves({"seed": 0, "optim": {"betas": [0.9, 0.99]}})
    {'seed': 0, 'optim.betas': [0.9, 0.99]}
    """
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {name: value for key in node for name, value in leaves(node[key], f"{prefix}{key}.").items()}
