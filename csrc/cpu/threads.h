// Threads of the OpenMP runtime that torch has loaded, never of one of our own: two runtimes in a process fight for
// the cores, and each slows the other several times over.
#pragma once

#include "math/platform.h"

namespace snnfast {

// Takes the runtime's entry points from `library`, a path that is already loaded and depends on the runtime (torch's
// CPU library). False where it offers none; everything then runs on the calling thread.
bool use_openmp_of(const char* library);

// Calls body(context, first, last) for a split of [0, count) over at most `threads` threads. The split has no bearing
// on results. Serial in a forked child: the parent's OpenMP threads do not exist there.
void parallel_ranges(i64 count, int threads, void (*body)(void* context, i64 first, i64 last), void* context);

template <class Body>
void parallel_for(i64 count, int threads, Body body) {
    parallel_ranges(
        count, threads, [](void* context, i64 first, i64 last) { (*static_cast<Body*>(context))(first, last); }, &body);
}

}  // namespace snnfast
