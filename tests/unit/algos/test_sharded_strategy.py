"""Strategies that deal weights out: which are taken, and what is said of the others."""

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from lit_posttrain.models.sharding import sharding_mesh


def test_fsdp1_is_refused_and_fsdp2_named():
    with pytest.raises(ValueError, match=r"is FSDP1, .*: use FSDP2: `Trainer.strategy=Model"):
        sharding_mesh(FSDPStrategy())


def test_a_strategy_that_deals_nothing_out_has_no_mesh():
    assert sharding_mesh(DDPStrategy()) is None
