"""SpikingJelly as tests import it: also beside a CPU build of torch, where torchvision alone fails to be imported."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch


def load(*names: str) -> list[Any]:
    """Modules of the library, or a skip that says why there are none."""
    with pytest.MonkeyPatch.context() as patch:
        # PyPI's torchvision beside a CPU build of torch: it has stand-ins for operators that are not there.
        register = torch.library.register_fake

        def without_torchvision(op: Any, *args: Any, **options: Any) -> Any:
            if isinstance(op, str) and op.startswith("torchvision::"):
                return lambda function: function
            return register(op, *args, **options)

        patch.setattr(torch.library, "register_fake", without_torchvision)
        pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (pip install '.[peers]')")
        modules = []
        for name in names:
            try:
                modules.append(importlib.import_module(f"spikingjelly.{name}"))
            except ModuleNotFoundError as error:
                pytest.skip(f"this version of spikingjelly has no {name} ({error})")
        return modules
