"""Other libraries as tests import them: also beside a CPU build of torch, where torchvision alone is not importable."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def without_torchvisions_operators() -> Iterator[None]:
    """Lets PyPI's torchvision be imported: it makes stand-ins for operators that a CPU build of torch has not."""
    with pytest.MonkeyPatch.context() as patch:
        register = torch.library.register_fake

        def without_torchvision(op: Any, *args: Any, **options: Any) -> Any:
            if isinstance(op, str) and op.startswith("torchvision::"):
                return lambda function: function
            return register(op, *args, **options)

        patch.setattr(torch.library, "register_fake", without_torchvision)
        yield


def spikingjelly(*names: str) -> list[Any]:
    """Modules of SpikingJelly, or a skip that says why there are none."""
    with without_torchvisions_operators():
        pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (pip install '.[peers]')")
        modules = []
        for name in names:
            try:
                modules.append(importlib.import_module(f"spikingjelly.{name}"))
            except ModuleNotFoundError as error:
                pytest.skip(f"this version of spikingjelly has no {name} ({error})")
        return modules
