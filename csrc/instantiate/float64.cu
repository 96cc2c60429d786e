#include "../launch.cuh"

template struct snnfast::cuda::Launcher<double>;
