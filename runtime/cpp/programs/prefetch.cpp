#include "prefetch.hpp"

#include <algorithm>

Prefetch::Prefetch(const prtool::Encoder& encoder, const std::vector<std::string>& files, std::size_t ahead, unsigned workers)
    : encoder_(encoder),
      files_(files),
      each_(std::size_t{3} * static_cast<std::size_t>(encoder.info().image_height) * static_cast<std::size_t>(encoder.info().image_width)),
      slots_(std::max<std::size_t>(1, ahead)) {
    for (unsigned worker = 0; worker < std::max(1U, workers); ++worker) threads_.emplace_back(&Prefetch::work, this);
}

Prefetch::~Prefetch() {
    {
        const std::lock_guard<std::mutex> hold(lock_);
        stopped_ = true;
    }
    room_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

Prefetch::Item Prefetch::next() {
    std::unique_lock<std::mutex> hold(lock_);
    Slot& slot = slots_[taken_ % slots_.size()];
    ready_.wait(hold, [&slot] { return slot.ready; });
    Item item = std::move(slot.item);
    slot = Slot{};
    ++taken_;
    room_.notify_one();
    return item;
}

void Prefetch::work() {
    std::unique_lock<std::mutex> hold(lock_);
    while (true) {
        room_.wait(hold, [this] { return stopped_ || started_ == files_.size() || started_ < taken_ + slots_.size(); });
        if (stopped_ || started_ == files_.size()) return;
        const std::size_t number = started_++;
        hold.unlock();
        Item item = prepare(files_[number]);
        hold.lock();
        slots_[number % slots_.size()] = {std::move(item), true};
        ready_.notify_one();
    }
}

Prefetch::Item Prefetch::prepare(const std::string& file) const {
    Item item;
    item.pixels.resize(each_);
    if (prtool_prepare_file(encoder_.handle(), file.c_str(), item.pixels.data()) != PRTOOL_OK) item = {{}, prtool_last_error()};
    return item;
}
