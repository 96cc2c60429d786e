#include "cpu/threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace snnfast {
namespace {

// The interface that GCC-compiled OpenMP code calls; GNU's, LLVM's and Intel's runtimes all export it.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Query = int (*)();

Parallel openmp_parallel = nullptr;
Query openmp_thread = nullptr;
Query openmp_threads = nullptr;
Query openmp_in_parallel = nullptr;
std::atomic<bool> forked_child{false};

struct Team {
    i64 count;
    void (*body)(void*, i64, i64);
    void* context;
};

void member(void* data) {
    const Team& team = *static_cast<const Team*>(data);
    const i64 size = openmp_threads();
    const i64 rank = openmp_thread();
    const i64 first = team.count * rank / size;
    const i64 last = team.count * (rank + 1) / size;
    if (first < last) team.body(team.context, first, last);
}

}  // namespace

bool use_openmp_of(const char* library) {
    void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return false;
    // dlsym on a handle also searches what that library was linked with.
    const auto parallel = reinterpret_cast<Parallel>(dlsym(handle, "GOMP_parallel"));
    const auto thread = reinterpret_cast<Query>(dlsym(handle, "omp_get_thread_num"));
    const auto threads = reinterpret_cast<Query>(dlsym(handle, "omp_get_num_threads"));
    const auto in_parallel = reinterpret_cast<Query>(dlsym(handle, "omp_in_parallel"));
    dlclose(handle);
    if (!parallel || !thread || !threads || !in_parallel) return false;
    openmp_parallel = parallel;
    openmp_thread = thread;
    openmp_threads = threads;
    openmp_in_parallel = in_parallel;
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
    return registered == 0;
}

void parallel_ranges(i64 count, int threads, void (*body)(void*, i64, i64), void* context) {
    if (threads > count) threads = static_cast<int>(count);
    if (threads <= 1 || !openmp_parallel || forked_child || openmp_in_parallel()) {
        if (count > 0) body(context, 0, count);
        return;
    }
    Team team{count, body, context};
    openmp_parallel(member, &team, static_cast<unsigned>(threads), 0);
}

}  // namespace snnfast
