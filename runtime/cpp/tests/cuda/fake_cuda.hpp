// CUDA's runtime on the host, as lazy as it may be: work put on a stream is done when somebody waits for it, and not before.
// So a copy that nothing waits for is missing in the result, which on a GPU would be a race.
#pragma once

#include <cstddef>

namespace fake_cuda {

// What is held now, and what happened since the program began.
struct Counts {
    int memories = 0;  // device and pinned memory that was not freed
    int streams = 0;   // and not destroyed, and so the next two
    int events = 0;
    int graphs = 0;
    int allocations = 0;
    int replays = 0;
};
Counts counts();

// The next allocations fail; 0 gives memory again.
void fail_allocations(int number);

}  // namespace fake_cuda
