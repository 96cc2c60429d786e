"""``snnfast.to_nir`` and ``snnfast.from_nir``: networks as graphs of NIR, the neuromorphic intermediate representation.

``nir`` has the two; ``rule`` is the one place that says what a time step of a graph is, and what other libraries'
graphs leave out. ``recording`` runs a model once and follows its tensors, ``writing`` makes nodes of the layers it
meets; ``reading`` makes layers of nodes, ``network`` is the module that holds them. The package nir is imported where a
function needs it.
"""
