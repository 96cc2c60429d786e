#include "cuda/launch.cuh"

template struct snnfast::cuda::Launcher<float>;
