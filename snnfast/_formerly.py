"""Where modules were in version 0.1, for networks that it pickled whole (``torch.save(model, file)``)."""

import sys

from snnfast.fusion import modules, recipe
from snnfast.layers import batch_norm

sys.modules.setdefault("snnfast.batch_norm", batch_norm)
sys.modules.setdefault("snnfast._fuse_modules", modules)
sys.modules.setdefault("snnfast._fuse_trace", recipe)
