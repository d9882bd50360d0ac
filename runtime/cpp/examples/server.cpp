// server BUNDLE [THREADS]: a loop as a service has it. Paths come in on stdin, one a line; workers share one encoder, and
// answers go to stdout as they are ready: path, class, probability.
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <prtool.hpp>
#include <queue>
#include <thread>

namespace {

// Lines from one thread to many; closed once there will be no more.
class Queue {
public:
    void push(std::string line) {
        const std::lock_guard<std::mutex> hold(lock_);
        lines_.push(std::move(line));
        changed_.notify_one();
    }

    void close() {
        const std::lock_guard<std::mutex> hold(lock_);
        closed_ = true;
        changed_.notify_all();
    }

    bool pop(std::string& line) {
        std::unique_lock<std::mutex> hold(lock_);
        changed_.wait(hold, [this] { return closed_ || !lines_.empty(); });
        if (lines_.empty()) return false;
        line = std::move(lines_.front());
        lines_.pop();
        return true;
    }

private:
    std::mutex lock_;
    std::condition_variable changed_;
    std::queue<std::string> lines_;
    bool closed_ = false;
};

std::string answer(const prtool::Encoder& encoder, const std::string& path) {
    try {
        const auto best = encoder.classify_files({path}, {}, 1)[0][0];
        return path + "\t" + best.name + "\t" + std::to_string(best.probability);
    } catch (const prtool::Failure& failure) {
        return path + "\terror\t" + failure.what();
    }
}

}  // namespace

int main(int count, char** words) try {
    if (count < 2) throw std::invalid_argument("usage: server BUNDLE [THREADS] < paths");
    // Many requests at once: one CPU thread for each, and none that spins.
    prtool_options options = prtool_options_default();
    options.threads = 1;
    options.spinning = 0;
    const prtool::Encoder encoder(words[1], options);
    Queue queue;
    std::mutex output;
    std::vector<std::thread> workers;
    for (int worker = 0; worker < (count > 2 ? std::stoi(words[2]) : 2); ++worker) {
        workers.emplace_back([&] {
            for (std::string path; queue.pop(path);) {
                const std::string line = answer(encoder, path);
                const std::lock_guard<std::mutex> hold(output);
                std::cout << line << std::endl;
            }
        });
    }
    for (std::string line; std::getline(std::cin, line);) queue.push(line);
    queue.close();
    for (std::thread& worker : workers) worker.join();
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
