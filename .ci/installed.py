"""Checks that an installed snnfast works where it lies, and that it is small enough. Run it outside the source tree.

    python -P .ci/installed.py FOLDER

FOLDER is where the package must have been imported from. SNNFAST_CUDA=1 asks for CUDA kernels in it, 0 for none.
"""

import importlib.metadata
import io
import os
import re
import sys
import zipfile
from pathlib import Path

import torch

# What only the extras install is not there for the layers, whether it is installed or not. (torch has loaded its own.)
extras = ("sklearn", "scipy", "tqdm", "matplotlib", "PIL", "tensorboard", "nir", "h5py")
assert "snnfast" not in sys.modules
sys.modules |= {name: None for name in extras if name not in sys.modules}

import snnfast  # noqa: E402

MEGABYTES = 20

place = Path(snnfast.__file__).resolve()
assert place.is_relative_to(Path(sys.argv[1]).resolve()), f"snnfast was imported from {place}"

current = torch.randn(10, 4, 8, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
layer = snnfast.IF()
spikes = layer(current)
spikes.sum().backward()
expected = snnfast.reference.integrate_and_fire(current.detach())[0]
assert 0 < spikes.mean() < 1 and torch.equal(spikes, expected), "spikes differ from the reference's"
assert current.grad is not None and current.grad.isfinite().all() and current.grad.any()

required = [entry for entry in importlib.metadata.requires("snnfast") or () if "extra ==" not in entry]
assert {re.split(r"\W", entry)[0] for entry in required} == {"torch", "numpy"}, f"snnfast requires {required}"

backend = snnfast.build_info()["cuda"]["backend"]
wanted = os.environ.get("SNNFAST_CUDA", "auto")
assert wanted == "auto" or (backend == "none") == (wanted == "0"), f"SNNFAST_CUDA={wanted}, CUDA backend: {backend}"

# A wheel is these files, zipped.
wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
    for file in importlib.metadata.files("snnfast") or ():
        if "__pycache__" not in file.parts and ".." not in file.parts:
            archive.write(file.locate(), str(file))
size = wheel.tell() / 1e6
print(f"snnfast {snnfast.__version__} works from {place.parent}; CUDA: {backend}; {size:.1f} MB as a wheel")
assert size < MEGABYTES, f"the wheel would be larger than {MEGABYTES} MB"
