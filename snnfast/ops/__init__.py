"""The operations as torch sees them. Above this room tensors and options, below it addresses and the compiled core.

``registry`` registers and calls ops, ``recording`` knows when a network is written down, ``layout`` how tensors lie in
memory; ``integrate``, ``normalize`` and ``pack_bits`` are the operations.
"""
