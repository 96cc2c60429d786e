// Stands in for CUDA's header when the tests compile csrc/cuda/launch.cu, csrc/cuda/instantiate/*.cu and the kernels that
// they include, the very files, as C++: the kernels' source runs on the host, block by block and thread by thread.
//
// A kernel without barriers is a loop over its threads. Once a thread reaches __syncthreads, the threads of its block
// become fibers (ucontext) that meet there; a barrier that not all of them reach is an error, a missing one gives wrong
// numbers, since the threads run one after another, in another order in every block (shared memory keeps the numbers of
// the block before, which one fixed order could happen to use in place of the missing ones).
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <memory>
#include <set>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

namespace host_run {

class Block {
public:
    explicit Block(unsigned threads) : fibers_(threads) {}

    void run(const std::function<void()>& body) {
        body_ = &body;
        met_barrier_ = false;
        shuffle_ += 2;
        start(nth(0));
        for (unsigned n = 1; n < fibers_.size(); ++n) {
            const unsigned t = nth(n);
            if (met_barrier_) {
                start(t);
            } else {
                plain_ = true;  // the first thread met no barrier: no fibers needed
                threadIdx = dim3(t);
                body();
                plain_ = false;
            }
        }
        while (met_barrier_) {
            unsigned waiting = 0;
            for (const Fiber& fiber : fibers_) waiting += !fiber.finished;
            if (waiting == 0) return;
            if (waiting != fibers_.size()) fail("a barrier that some threads of the block never reach");
            for (unsigned n = 0; n < fibers_.size(); ++n) resume(nth(n));
        }
    }

    void barrier() {
        if (plain_) fail("a barrier that the first thread of the block did not reach");
        met_barrier_ = true;
        swapcontext(&fibers_[current_].context, &main_);
    }

    static Block*& active() {
        static thread_local Block* block = nullptr;
        return block;
    }

private:
    static constexpr std::size_t stack_bytes = 1 << 16;

    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        bool finished = true;
    };

    // The n-th thread to run: an odd multiple visits each of a power of two threads once.
    unsigned nth(unsigned n) const { return (n * shuffle_ + shuffle_ / 2) % static_cast<unsigned>(fibers_.size()); }

    [[noreturn]] static void fail(const char* what) {
        std::fprintf(stderr, "host run of a CUDA kernel: %s\n", what);
        std::abort();
    }

    static void enter() {
        Block& block = *active();
        (*block.body_)();
        block.fibers_[block.current_].finished = true;
    }

    void start(unsigned t) {
        Fiber& fiber = fibers_[t];
        if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
        fiber.finished = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = &main_;
        makecontext(&fiber.context, &Block::enter, 0);
        resume(t);
    }

    void resume(unsigned t) {
        current_ = t;
        threadIdx = dim3(t);
        swapcontext(&main_, &fibers_[t].context);
    }

    std::vector<Fiber> fibers_;
    ucontext_t main_;
    const std::function<void()>* body_ = nullptr;
    unsigned current_ = 0;
    bool met_barrier_ = false;
    bool plain_ = false;
    static inline thread_local unsigned shuffle_ = 35;
};

// The kernels that were launched, by address: tests/host_run/__init__.py names them.
inline std::set<const void*> launched;

}  // namespace host_run

inline void __syncthreads() { host_run::Block::active()->barrier(); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const dim3 grid = config->gridDim;
    // The limits of every architecture we build for.
    if (grid.x == 0 || grid.y == 0 || grid.x > 0x7fffffffu || grid.y > 65535u || config->blockDim.x > 1024u)
        return cudaErrorInvalidValue;
    if (config->blockDim.x & (config->blockDim.x - 1)) return cudaErrorInvalidValue;  // the shim's own limit
    host_run::launched.insert(reinterpret_cast<const void*>(kernel));
    gridDim = grid;
    blockDim = config->blockDim;
    host_run::Block block(config->blockDim.x);
    host_run::Block::active() = &block;
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            block.run([&] { kernel(arguments...); });
        }
    }
    host_run::Block::active() = nullptr;
    return cudaSuccess;
}
