"""What a comparison of two implementations needs: the plain loop over time, and timings that are taken in turns.

Training (:func:`snnfast.training.compare`) and the benchmark suite use it. Only torch and the layers are needed here:
``snnfast.benchmarks.compare`` puts this room, with the suite, into builds of other revisions.
"""
