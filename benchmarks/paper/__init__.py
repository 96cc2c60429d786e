"""The paper's experiments, one module each: ``python -m snnfast.benchmarks.paper.single_neuron --out DIR``."""
