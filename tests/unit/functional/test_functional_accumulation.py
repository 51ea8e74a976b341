"""Which precision a device adds up in."""

from types import SimpleNamespace

import pytest
import torch

from lit_posttrain.batching import Ranks
from lit_posttrain.batching import ranks as ranks_module
from lit_posttrain.functional.random import accumulation_dtype

CPU = torch.device("cpu")


def moved(tensor):
    """To where a module is, to be added up there."""
    return Ranks(SimpleNamespace(_trainer=None, device=CPU)).sum(tensor)


def test_the_cpu_has_float64():
    assert accumulation_dtype(CPU) == torch.float64
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
        tensor = torch.ones(2, dtype=dtype)
        assert moved(tensor) is tensor


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_device_that_refuses_it(monkeypatch, error):
    """Apple's raises the one, others the other."""

    def refuse(*size, **settings):
        raise error("no float64")

    monkeypatch.setattr(torch, "zeros", refuse)
    assert accumulation_dtype.__wrapped__(CPU) == torch.float32


def test_moving_to_a_device_without_it(monkeypatch):
    monkeypatch.setattr(ranks_module, "accumulation_dtype", lambda device: torch.float32)
    assert moved(torch.ones(2, dtype=torch.float64)).dtype == torch.float32
    assert moved(torch.ones(2, dtype=torch.int64)).dtype == torch.int64
    assert moved(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
