"""The command line in this process."""

import logging
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lit_posttrain.app import cli
from lit_posttrain.models.loading import Pretrained


@pytest.fixture
def command_line(monkeypatch, tmp_path, capfd):
    """Run `lit-posttrain` with arguments in this process: exit status and what it printed, no weights loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pretrained, "load_base", lambda self: pytest.fail("weights were loaded"))
    handlers, level = list(logging.root.handlers), logging.root.level

    def call(*arguments: str, full_errors: str = "0") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lit-posttrain", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_errors)
        status = 0
        try:
            cli.main()
        except SystemExit as leave:
            status = int(leave.code or 0)
        return status, *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
