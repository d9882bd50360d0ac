#include "fake_cuda.hpp"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/kernels.hpp"
#include "select.hpp"

namespace {

using Work = std::function<void()>;

std::recursive_mutex lock;
std::atomic<int> memories, streams, events, graphs, allocations, replays, failing;
thread_local int current = 0;

}  // namespace

struct CUstream_st {
    std::vector<Work> waiting;
    std::size_t done = 0;  // works since the stream was made
    bool recording = false;
    std::vector<Work> recorded;

    void put(Work work) {
        const std::lock_guard<std::recursive_mutex> hold(lock);
        (recording ? recorded : waiting).push_back(std::move(work));
    }
    // Does the works before the one of that number, counted from the first that ever was.
    void flush(std::size_t before) {
        const std::lock_guard<std::recursive_mutex> hold(lock);
        while (done < before && !waiting.empty()) {
            const Work work = std::move(waiting.front());
            waiting.erase(waiting.begin());
            ++done;
            work();
        }
    }
    std::size_t end() {
        const std::lock_guard<std::recursive_mutex> hold(lock);
        return done + waiting.size();
    }
};

struct CUevent_st {
    cudaStream_t stream = nullptr;
    std::size_t mark = 0;
};

struct CUgraph_st {
    std::vector<Work> works;
};

struct CUgraphExec_st {
    std::vector<Work> works;
};

namespace {

CUstream_st default_stream;

CUstream_st& stream_of(cudaStream_t stream) {
    return stream == nullptr ? default_stream : *stream;
}

cudaError_t allocate(void** memory, std::size_t bytes) {
    if (failing > 0) {
        --failing;
        return cudaErrorMemoryAllocation;
    }
    *memory = std::malloc(bytes);
    ++memories;
    ++allocations;
    return cudaSuccess;
}

cudaError_t release(void* memory) {
    std::free(memory);
    if (memory != nullptr) --memories;
    return cudaSuccess;
}

}  // namespace

namespace fake_cuda {

Counts counts() {
    return {memories, streams, events, graphs, allocations, replays};
}

void fail_allocations(int number) {
    failing = number;
}

}  // namespace fake_cuda

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 2;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::strcpy(properties->name, "No GPU");
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 9;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    return allocate(memory, bytes);
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
    return allocate(memory, bytes);
}
cudaError_t cudaFree(void* memory) {
    return release(memory);
}
cudaError_t cudaFreeHost(void* memory) {
    return release(memory);
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    *free = *total = std::size_t{5} << 20;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new CUstream_st;
    ++streams;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    --streams;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CUstream_st& work = stream_of(stream);
    if (work.recording) return cudaErrorStreamCaptureUnsupported;
    work.flush(work.end());
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new CUevent_st;
    ++events;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    --events;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->stream = stream;
    event->mark = stream_of(stream).end();
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const CUevent_st marked = *event;
    stream_of(stream).put([marked] { stream_of(marked.stream).flush(marked.mark); });
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    stream_of(stream).put([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    stream_of(stream).put([=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->recording = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = new CUgraph_st{std::move(stream->recorded)};
    stream->recorded.clear();
    stream->recording = false;
    ++graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    *made = new CUgraphExec_st{graph->works};
    ++graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    --graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    --graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    for (const Work& work : graph->works) stream->put(work);
    ++replays;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "out of memory" : "failure";
}
}

// The kernels, a patch and a token after another.
namespace prtool::cuda {

void select(const float* scores, std::int64_t batch, std::int64_t patches, std::int64_t k, std::int64_t* indices, const Invalid& invalid, cudaStream_t stream) {
    stream_of(stream).put([=] {
        for (std::int64_t image = 0; image < batch; ++image) {
            const float* row = scores + image * patches;
            for (std::int64_t patch = 0; patch < patches; ++patch) {
                const auto place = static_cast<unsigned>(image * invalid.row + patch);
                if (row[patch] != row[patch] && place < *invalid.place) *invalid.place = place;
                const std::int64_t rank = rank_of(row, patches, patch);
                if (rank < k) indices[image * k + rank] = patch;
            }
        }
    });
}

void gather(const float* tokens, const Sequence& sequence, const std::int64_t* indices, std::int64_t k, float* out, cudaStream_t stream) {
    stream_of(stream).put([=] {
        const std::int64_t rows = sequence.prefix + k + sequence.appended, length = sequence.prefix + sequence.patches + sequence.appended;
        for (std::int64_t row = 0; row < sequence.batch * rows; ++row) {
            const std::int64_t image = row / rows;
            const std::int64_t source = image * length + source_row(row % rows, indices + image * k, k, sequence.patches, sequence.prefix);
            std::memcpy(out + row * sequence.width, tokens + source * sequence.width, static_cast<std::size_t>(sequence.width) * sizeof(float));
        }
    });
}

}  // namespace prtool::cuda
