// SPDX-License-Identifier: Apache-2.0
#include "bin_pack.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace fgk {
namespace {

// Room left in each of n bins, with the largest room of each subtree, to find the first bin that has enough.
class RoomTree {
 public:
  RoomTree(size_t bins, int64_t capacity) {
    while (leaves_ < bins) leaves_ *= 2;
    largest_.assign(2 * leaves_, capacity);
  }

  size_t take_first_with(int64_t length) {
    size_t node = 1;
    while (node < leaves_) node = largest_[2 * node] >= length ? 2 * node : 2 * node + 1;
    const size_t bin = node - leaves_;
    largest_[node] -= length;
    while (node > 1) {
      node /= 2;
      largest_[node] = std::max(largest_[2 * node], largest_[2 * node + 1]);
    }
    return bin;
  }

 private:
  size_t leaves_ = 1;
  std::vector<int64_t> largest_;
};

}  // namespace

std::vector<std::vector<int64_t>> bin_pack(const std::vector<int64_t>& lengths, int64_t capacity) {
  if (capacity <= 0) {
    throw std::invalid_argument("capacity: expected a positive number, got " + std::to_string(capacity));
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > capacity) {
      throw std::invalid_argument("lengths[" + std::to_string(i) + "]: expected 0 to capacity = " +
                                  std::to_string(capacity) + ", got " + std::to_string(lengths[i]));
    }
  }
  std::vector<int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });

  std::vector<std::vector<int64_t>> bins;
  RoomTree room(lengths.size(), capacity);  // one bin per item always suffices
  for (int64_t item : order) {
    const size_t bin = room.take_first_with(lengths[item]);
    if (bin >= bins.size()) bins.resize(bin + 1);
    bins[bin].push_back(item);
  }
  return bins;
}

}  // namespace fgk
