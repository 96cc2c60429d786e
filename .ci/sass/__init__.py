"""Machine code of the CUDA kernels: read, followed instruction by instruction, and judged by a model of a GPU."""
