"""Neurons of other libraries on the kernels here: in a network of theirs, and as layers with their dynamics."""
