"""How much a spiking network fires and computes, layer by layer.

:func:`snnfast.activity_report` runs a model once under hooks. ``layers`` counts spikes, ``counts`` follows them through
linear operations, ``maps`` counts what linear maps compute of them, ``report`` puts it together.
"""

from snnfast.activity.layers import LayerActivity
from snnfast.activity.maps import MapActivity
from snnfast.activity.report import ActivityReport, activity_report

__all__ = ["ActivityReport", "LayerActivity", "MapActivity", "activity_report"]
