// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace fgk {

// First-fit decreasing: indices of `lengths` grouped into bins whose lengths add up to at most `capacity`. Longer
// first, equal lengths in input order; each goes into the first bin with room. O(n log n). At most 11/9 OPT + 6/9 bins
// (Dosa 2007). Throws std::invalid_argument when the capacity is not positive or a length is negative or too long.
std::vector<std::vector<int64_t>> bin_pack(const std::vector<int64_t>& lengths, int64_t capacity);

}  // namespace fgk
