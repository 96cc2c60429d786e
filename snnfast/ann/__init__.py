"""``snnfast.to_spiking``: a plain PyTorch network becomes a spiking one, with the same weights, to be trained.

``flat`` makes one torch.fx graph of the network's whole forward and ``samples`` runs it, to see what each value is and
that the graph computes what the network does. ``operations`` knows what an operation is to spikes, ``domains`` where
time begins and ends in the graph, ``rewrite`` writes the spiking network's forward; ``network`` is what it becomes, and
``report`` says what was done. ``apply`` does all of it.
"""
