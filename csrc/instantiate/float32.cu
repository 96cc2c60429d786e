#include "../launch.cuh"

template struct snnfast::cuda::Launcher<float>;
