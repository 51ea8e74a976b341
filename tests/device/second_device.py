"""A second device for a machine without a GPU: `connect()` makes `torch.device("second")` known to this process.

It computes on the CPU and minds where tensors are; what it refuses stands at the head of `second_device.cpp`. It says
nothing of speed, memory or the rounding of other kernels. A process that has connected it never loses it again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

NAME = "second"
SOURCE = Path(__file__).with_suffix(".cpp")


def has_compiler() -> bool:
    return shutil.which(get_cxx_compiler()) is not None


def build() -> Path:
    """The compiled library: made once for this source and this torch, however many processes ask for it at once."""
    content = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__}".encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"second_device_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{content[:16]}.so"
    with (folder / "lock").open("w") as lock:  # let go of by the system when its holder dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            (folder / "new.so").unlink(missing_ok=True)
            compile_to(folder / "new.so")
            (folder / "new.so").rename(library)
    return library


def compile_to(library: Path) -> None:
    (torch_libraries,) = library_paths()
    command = [get_cxx_compiler(), "-std=c++20", "-O0", "-w", "-fPIC", "-shared", str(SOURCE), "-o", str(library)]
    command += [argument for path in include_paths() for argument in ("-isystem", path)]
    command += [f"-L{torch_libraries}", f"-Wl,-rpath,{torch_libraries}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


@cache
def connect() -> None:
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(build())
    torch.ops.second_device.connect()
    torch._register_device_module(NAME, _device_module())
    torch.utils.generate_methods_for_privateuse1_backend()
    # else `Module.to` makes two weights of one that is tied: torch does not know the device's tensors for plain ones
    torch.__future__.set_swap_module_params_on_conversion(True)


def faults() -> list[str]:
    """What it has refused, float64 aside, also where the error was caught."""
    return torch.ops.second_device.faults()


def forget_faults() -> None:
    torch.ops.second_device.forget_faults()


def refuse_float64(refused: bool) -> None:
    torch.ops.second_device.refuse_float64(refused)


def _device_module() -> types.ModuleType:
    """What torch asks of `torch.<device>`."""

    class device:
        def __init__(self, index: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    module = types.ModuleType(f"torch.{NAME}")
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "_lazy_init": None,
        "_is_in_bad_fork": False,
        "manual_seed": None,
        "manual_seed_all": None,
        "get_rng_state": torch.zeros(0, dtype=torch.uint8),  # it has no random numbers
        "set_rng_state": None,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer, **__: answer)
    module.device = device
    return module


class SecondAccelerator(Accelerator):
    """For `Trainer(accelerator=...)`."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


# The same on the command line.
OVERRIDES = [
    "trainer.accelerator={_target_: tests.device.second_device.SecondAccelerator}",
    f"+trainer.strategy={{_target_: lightning.pytorch.strategies.SingleDeviceStrategy, device: '{NAME}:0'}}",
]


def second_trainer() -> dict[str, Any]:
    """The arguments of a Trainer that trains on it."""
    return {
        "accelerator": SecondAccelerator(),
        "strategy": SingleDeviceStrategy(device=torch.device(NAME, 0)),
        "devices": 1,
    }
