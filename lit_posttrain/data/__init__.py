"""Data as the algorithms take it: rows, formats and chat templates, DataModules."""

from lit_posttrain.data.prompt_loader import PromptLoader
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.rows import Rows, load_rows

__all__ = ["PromptDataModule", "PromptLoader", "Rows", "load_rows"]
