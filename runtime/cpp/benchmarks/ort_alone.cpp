// ort_alone GRAPH SIDE K BATCH CALLS THREADS: ONNX Runtime with the fused graph and nothing else, for its memory.
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <vector>

int main(int count, char** words) {
    if (count != 7) return 2;
    const std::int64_t side = std::atoll(words[2]);
    const std::int64_t batch = std::atoll(words[4]);
    Ort::Env environment(ORT_LOGGING_LEVEL_FATAL, "alone");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(std::atoi(words[6]));
    Ort::Session session(environment, words[1], options);
    const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<float> pixels(static_cast<std::size_t>(batch * 3 * side * side), 0.5F);
    std::vector<std::int64_t> k{std::atoll(words[3])};
    const std::vector<std::int64_t> shape{batch, 3, side, side};
    const std::vector<std::int64_t> one{1};
    const char* inputs[] = {"pixels", "k"};
    const char* outputs[] = {"embedding"};
    for (int call = 0; call < std::atoi(words[5]); ++call) {
        std::vector<Ort::Value> given;
        given.push_back(Ort::Value::CreateTensor<float>(host, pixels.data(), pixels.size(), shape.data(), shape.size()));
        given.push_back(Ort::Value::CreateTensor<std::int64_t>(host, k.data(), k.size(), one.data(), one.size()));
        session.Run(Ort::RunOptions{nullptr}, inputs, given.data(), given.size(), outputs, 1);
    }
    return 0;
}
