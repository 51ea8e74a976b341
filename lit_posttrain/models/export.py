"""The folder of an exported model, which is there whole or not at all."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

from lit_posttrain.files.whole import whole_folder

# What an export that is replaced must not leave behind: whoever loads the folder would take it for the new one's.
OUTDATED = re.compile(
    r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|(adapter|generation|tokenizer)_config\.json"
    r"|tokenizer\.(json|model)|(special_tokens_map|added_tokens)\.json|chat_template\.jinja"
)


def export_folder(folder: str | Path) -> AbstractContextManager[Path]:
    """Write an export into a draft, which takes the place of `folder` at the end; see `whole_folder`."""
    return whole_folder(Path(folder), outdated=OUTDATED)
