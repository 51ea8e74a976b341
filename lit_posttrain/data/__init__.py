"""Data as the algorithms take it: rows, formats and chat templates, DataModules."""

from lit_posttrain.data.instruct import InstructDataModule
from lit_posttrain.data.loaders import PromptLoader
from lit_posttrain.data.preferences import PreferenceDataModule
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.sources.rows import Rows, load_rows

__all__ = ["InstructDataModule", "PreferenceDataModule", "PromptDataModule", "PromptLoader", "Rows", "load_rows"]
