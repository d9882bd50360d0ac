// Files that appear whole or not at all, and of which a stopped program leaves nothing.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

// From here on SIGINT, SIGTERM and SIGHUP end the program with status 128 + signal, one line on stderr and no unfinished file.
// A closed pipe is an error of the write, not a signal.
void end_cleanly_on_signals();

// Files under hidden names next to their places (".NAME.xxxxxxxx.part"), until `put` moves them there.
class NewFiles {
public:
    NewFiles();
    ~NewFiles();  // removes what was not put
    NewFiles(const NewFiles&) = delete;
    NewFiles& operator=(const NewFiles&) = delete;

    // Throws std::runtime_error: it cannot be written.
    void write(const std::string& path, const std::function<void(std::ostream&)>& content);

    // Moves the files to their places, in the order in which they were written. Throws std::runtime_error.
    void put();

private:
    struct Part;
    std::vector<std::unique_ptr<Part>> parts_;
};

// Removes unfinished files of `path` whose programs were killed; those of programs that still run stay.
void sweep(const std::string& path);
