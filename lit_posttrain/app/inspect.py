"""Show what a model would learn from: `python -m lit_posttrain.app.inspect data=instruct data.path=rows.jsonl`."""

import argparse
import sys
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from lit_posttrain.app.errors import USER_ERRORS, name_options, told
from lit_posttrain.app.options.checks import check_arguments
from lit_posttrain.app.options.hints import check_additions, explain_composition_error

# What Hydra fills in when it runs a job; nothing is run here.
NO_JOB = ["run_dir=.", "names.algo=none", "names.model=none", "names.data=none"]
PROMPT, MASKED = "dim", "yellow"
SUPERVISED = ("bold black on green", "bold black on cyan")  # in turn, so that the borders of tokens are seen


def main(arguments: list[str] | None = None) -> int:
    """Print a few rows of a data configuration with their supervised tokens; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lit_posttrain.app.inspect", description=__doc__)
    parser.add_argument("--rows", type=int, default=3, help="rows of each split, 3 unless told")
    parser.add_argument("overrides", nargs="*", help="as for train.py: data=... model=... data.path=...")
    given = parser.parse_intermixed_args(arguments)
    try:
        with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
            cfg = compose("train", [*NO_JOB, *given.overrides])
        check_additions(given.overrides, list(cfg))
        try:
            show(cfg, rows=given.rows, console=Console(soft_wrap=True))
        except USER_ERRORS as error:
            name_options(error, cfg)
            raise
    except (HydraException, OmegaConfBaseException) as error:
        message = explain_composition_error(str(error), given.overrides) if error.__cause__ is None else None
        print(f"error: {told(error, message)}", file=sys.stderr)  # noqa: T201
        return 1
    except USER_ERRORS as error:
        print(f"error: {told(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def show(cfg: DictConfig, *, rows: int, console: Console) -> None:
    """Read the rows of `cfg.data`, encode them with the tokenizer of `cfg.model` and print some.

    Raises:
        ValueError: if an option of the two groups is missing or wrong, or the data are.
    """
    for group in ("data", "model"):
        missing = sorted(name for name in OmegaConf.missing_keys(cfg) if name.startswith(f"{group}."))
        if missing:
            raise ValueError(f"`{missing[0]}` must be given: add `{missing[0]}=...` to the command line.")
        check_arguments(cfg[group], group)
    from lit_posttrain.app.run import make_data
    from lit_posttrain.data import PromptDataModule

    data: Any = make_data(cfg)
    tokenizer = instantiate(cfg.model, _convert_="all").load_tokenizer()
    data.setup("fit")
    data.encode(tokenizer)
    if isinstance(data, PromptDataModule):
        _show_prompts(data, tokenizer, rows=rows, console=console)
        return
    tokenizer = data.tokenizer
    for split in ("train", "validation"):
        sources = data.encoded(split)
        count, dropped = sum(map(len, sources)), sum(len(source.dropped) for source in sources)
        console.print(Text(f"{split}: {count} rows, {dropped} left out", style="bold"))
        examples = [example for source in sources for example in source.examples[:rows]]
        for index, example in enumerate(examples[:rows]):
            for name, row in _sequences(example):
                console.print(Text(f"\n{data.where(split, index)} {name}".rstrip(), style="bold"))
                console.print(_colored(row, tokenizer, marks=not console.is_terminal))
                console.print(
                    Text(
                        f"{len(row.prompt_ids)} tokens of prompt, {sum(row.loss_mask)} of {len(row.completion_ids)} "
                        f"tokens of completion supervised",
                        style="italic",
                    )
                )
        console.print()


def _show_prompts(data, tokenizer, *, rows: int, console: Console) -> None:  # type: ignore[no-untyped-def]
    from lit_posttrain.data.formats.chat import encode_prompt

    for split, found in (("train", data.train_rows), ("validation", data.val_rows)):
        console.print(Text(f"{split}: {len(found)} prompts", style="bold"))
        for index in range(min(rows, len(found))):
            ids = encode_prompt(found[index]["prompt"], tokenizer)
            console.print(Text(f"\n{data.where(split, index)}", style="bold"))
            console.print(Text(tokenizer.decode(ids, clean_up_tokenization_spaces=False), style=PROMPT))
            console.print(Text(f"{len(ids)} tokens of prompt; the completion is sampled", style="italic"))
        console.print()


def _sequences(example):  # type: ignore[no-untyped-def]
    """The sequences of a row with what each is called."""
    from lit_posttrain.batching import EncodedPair, JudgedRow

    if isinstance(example, EncodedPair):
        return [(f"chosen (margin {example.margin:g})", example.chosen), ("rejected", example.rejected)]
    if isinstance(example, JudgedRow):
        return [("desirable" if example.label else "undesirable", example.row)]
    return [("", example)]


def _colored(row, tokenizer, *, marks: bool) -> Text:  # type: ignore[no-untyped-def]
    """The text of a row, token by token; where there are no colours, supervised tokens stand between « and »."""
    ids = [*row.prompt_ids, *row.completion_ids]
    styles = [PROMPT] * len(row.prompt_ids)
    styles += [SUPERVISED[i % 2] if on else MASKED for i, on in enumerate(row.loss_mask)]
    made, before, open_mark = Text(), "", False
    for end, style in enumerate(styles, start=1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(ids):
            continue  # part of a character
        if marks and open_mark != (style in SUPERVISED):
            open_mark = not open_mark
            made.append("«" if open_mark else "»")
        made.append(text[len(before) :], style=style)  # alone a token may lack the space before it
        before = text
    return made.append("»") if open_mark else made


if __name__ == "__main__":
    sys.exit(main())
