// Prepared pixels of a list of files, in order; threads work ahead of whoever takes them.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "prtool.hpp"

class Prefetch {
public:
    // The pixels of one file, or the reason why it has none.
    struct Item {
        std::vector<float> pixels;
        std::string failure;
    };

    // Prepares up to `ahead` files more than were taken, on `workers` threads.
    Prefetch(const prtool::Encoder& encoder, const std::vector<std::string>& files, std::size_t ahead, unsigned workers);
    ~Prefetch();
    Prefetch(const Prefetch&) = delete;
    Prefetch& operator=(const Prefetch&) = delete;

    // Waits for the next file; as many calls as there are files.
    Item next();

private:
    struct Slot {
        Item item;
        bool ready = false;
    };

    void work();
    Item prepare(const std::string& file) const;

    const prtool::Encoder& encoder_;
    const std::vector<std::string>& files_;
    std::size_t each_;
    std::vector<Slot> slots_;  // a ring: file i lies in slot i % size
    std::size_t started_ = 0;
    std::size_t taken_ = 0;
    bool stopped_ = false;
    std::mutex lock_;
    std::condition_variable room_;
    std::condition_variable ready_;
    std::vector<std::thread> threads_;
};
