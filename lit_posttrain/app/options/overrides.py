"""The grammar of Hydra's overrides: what one sets, and how a text is given as a value."""

import re

from hydra.core.override_parser.types import Quote, QuotedString


def option(override: str) -> str:
    """The dotted name that an override sets.

    >>> option("+trainer.benchmark=true"), option("model/lora=default"), option("data@data.path.preferences=hh_rlhf")
    ('trainer.benchmark', 'model.lora', 'data.path.preferences')
    """
    name = override.lstrip("+~").partition("=")[0]
    return name.rpartition("@")[2].replace("/", ".")


def quote(text: str) -> str:
    r"""A text as a value of Hydra's grammar: in quotes unless it is plain, a quote in it escaped.

    >>> print(quote("/runs/sft"), quote("it's"))
    /runs/sft 'it\'s'
    """
    return text if re.fullmatch(r"[\w./-]*[A-Za-z_/][\w./-]*", text, flags=re.ASCII) else in_quotes(text)


def in_quotes(text: str) -> str:
    """A text in single quotes, those in it escaped."""
    return QuotedString(text, Quote.single).with_quotes()
