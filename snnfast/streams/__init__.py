"""``snnfast.streaming``: a network that was trained on whole sequences, run one step at a time.

``stream`` has the module that runs, ``carriers`` what stands for layers whose state is more than a potential,
``folding`` finds and folds the batch norms behind linear maps, ``trial`` says whether steps make what the whole
sequence makes.
"""
