"""``snnfast.fuse``: finds each batch norm in front of a neuron, and puts one fused layer in their place.

``apply`` does it, ``match`` finds what may be fused in the graph that ``trace`` makes of a forward; ``recipe`` gives a
module the forward that was written for it. ``values`` stands in for tensors and sizes while tracing, ``reshape`` knows
where time goes, ``modules`` are what a network then holds.
"""
