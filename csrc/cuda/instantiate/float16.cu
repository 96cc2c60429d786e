#include "cuda/launch.cuh"

template struct snnfast::cuda::Launcher<snnfast::float16>;
