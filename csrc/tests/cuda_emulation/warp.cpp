// SPDX-License-Identifier: Apache-2.0
// Warp collectives: each lane leaves its operands, and the 32nd to arrive executes for all.
#include <cstring>

#include "numbers.h"
#include "ordering.h"

namespace fgk::emulation::core {
namespace {

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::sync_warp:
      return "sync_warp";
    case Collective::shfl_xor:
      return "shfl_xor";
    case Collective::shfl:
      return "shfl";
    case Collective::shfl_up:
      return "shfl_up";
    case Collective::shfl_down:
      return "shfl_down";
    case Collective::ballot:
      return "ballot";
    case Collective::any:
      return "any";
    case Collective::all:
      return "all";
    case Collective::ldmatrix_x2:
      return "ldmatrix_x2";
    case Collective::ldmatrix_x4:
      return "ldmatrix_x4";
    case Collective::ldmatrix_x4_trans:
      return "ldmatrix_x4_trans";
    default:
      return "mma_16816";
  }
}

// Counts the running lane in; true for the last one.
bool arrive(Warp* warp, Collective collective, Site site) {
  Thread* thread = state.running;
  if (warp->exited != nullptr) {
    fault(FaultKind::exited_thread, site,
          std::string("waits in ") + name_of(collective) + " for thread " + std::to_string(warp->exited->id) +
              " of its warp, which has returned");
  }
  if (warp->arrived == 0) {
    warp->collective = collective;
    warp->site = site;
    warp->first = thread;
  } else if (warp->collective != collective || !same_site(warp->site, site)) {
    fault(FaultKind::divergent_collective, site,
          std::string("comes to ") + name_of(collective) + " while thread " + std::to_string(warp->first->id) +
              " of its warp waits in " + name_of(warp->collective) + " at " + site_text(warp->site));
  }
  thread->site = site;
  return ++warp->arrived == kLanes;
}

// The last lane to arrive lets the others go on and goes on itself.
void release(Warp* warp) {
  warp->arrived = 0;
  for (int i = 0; i < kLanes; ++i) {
    if (&warp->lanes[i] != state.running) make_ready(&warp->lanes[i]);
  }
}

void wait() {
  state.running->status = Thread::Status::in_collective;
  wait_for_turn();
}

void execute_exchange(Warp* warp) {
  uint64_t votes = 0;
  for (int i = 0; i < kLanes; ++i) votes |= static_cast<uint64_t>(warp->value[i] & 1) << i;
  for (int i = 0; i < kLanes; ++i) {
    int source = i;
    switch (warp->collective) {
      case Collective::shfl_xor:
        source = i ^ warp->argument[i];
        break;
      case Collective::shfl:
        source = warp->argument[i] & (kLanes - 1);
        break;
      case Collective::shfl_up:
        source = i - warp->argument[i];
        break;
      case Collective::shfl_down:
        source = i + warp->argument[i];
        break;
      case Collective::ballot:
        warp->result[i] = votes;
        continue;
      case Collective::any:
        warp->result[i] = votes != 0;
        continue;
      case Collective::all:
        warp->result[i] = votes == 0xFFFFFFFFu;
        continue;
      default:
        continue;
    }
    warp->result[i] = warp->value[source < 0 || source >= kLanes ? i : source];
  }
  if (warp->collective == Collective::sync_warp) {
    warp->time = ++state.times.now;
    if (ordering.in_use()) ordering.join_warp(warp->lanes->id);
  }
}

void execute_load(Warp* warp) {
  const bool transposed = warp->collective == Collective::ldmatrix_x4_trans;
  const int matrices = warp->collective == Collective::ldmatrix_x2 ? 2 : 4;
  for (int m = 0; m < matrices; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * m + row;
      std::memcpy(matrix[row], load_row(&warp->lanes[lane], warp->row[lane], warp->site), sizeof(matrix[row]));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int outer = lane / 4;
      const int inner = 2 * (lane % 4);
      const uint32_t low = transposed ? matrix[inner][outer] : matrix[outer][inner];
      const uint32_t high = transposed ? matrix[inner + 1][outer] : matrix[outer][inner + 1];
      warp->matrix[lane][m] = low | (high << 16);
    }
  }
}

constexpr int kM = 16;
constexpr int kN = 8;
constexpr int kK = 16;

// d = a b + c, in the fragment layouts of mma.m16n8k16.
template <class T>
void execute_multiply(Warp* warp) {
  float a[kM][kK];
  float b[kK][kN];
  float d[kM][kN];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4;
    const int pair = 2 * (lane % 4);
    for (int r = 0; r < 4; ++r) {
      float* at = &a[group + 8 * (r % 2)][pair + 8 * (r / 2)];
      dev::unpack2<T>(warp->a[lane][r], at[0], at[1]);
    }
    for (int r = 0; r < 2; ++r) {
      const int row = pair + 8 * r;
      dev::unpack2<T>(warp->b[lane][r], b[row][group], b[row + 1][group]);
    }
    for (int r = 0; r < 4; ++r) d[group + 8 * (r / 2)][pair + r % 2] = warp->c[lane][r];
  }
  for (int m = 0; m < kM; ++m) {
    float sum[kN];
    std::memcpy(sum, d[m], sizeof(sum));
    for (int k = 0; k < kK; ++k) {
      const float factor = a[m][k];
      for (int n = 0; n < kN; ++n) sum[n] += factor * b[k][n];
    }
    std::memcpy(d[m], sum, sizeof(sum));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 4; ++r) warp->d[lane][r] = d[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2];
  }
}

}  // namespace

uint64_t exchange(Collective collective, uint64_t value, int argument, Site site) {
  const Thread* thread = state.running;
  Warp* warp = thread->warp;
  const bool last = arrive(warp, collective, site);
  warp->value[thread->lane] = value;
  warp->argument[thread->lane] = argument;
  if (last) {
    execute_exchange(warp);
    release(warp);
  } else {
    wait();
  }
  return warp->result[thread->lane];
}

void load_matrix(Collective collective, uint32_t* result, const SharedPointer& row, Site site) {
  const Thread* thread = state.running;
  Warp* warp = thread->warp;
  const bool last = arrive(warp, collective, site);
  warp->row[thread->lane] = row;
  if (last) {
    execute_load(warp);
    release(warp);
  } else {
    wait();
  }
  const size_t registers = collective == Collective::ldmatrix_x2 ? 2 : 4;
  std::memcpy(result, warp->matrix[thread->lane], registers * sizeof(uint32_t));
}

void multiply(Collective collective, float* c, const uint32_t* a, const uint32_t* b, Site site) {
  const Thread* thread = state.running;
  Warp* warp = thread->warp;
  const bool last = arrive(warp, collective, site);
  std::memcpy(warp->a[thread->lane], a, sizeof(warp->a[0]));
  std::memcpy(warp->b[thread->lane], b, sizeof(warp->b[0]));
  std::memcpy(warp->c[thread->lane], c, sizeof(warp->c[0]));
  if (last) {
    if (collective == Collective::mma_bf16) {
      execute_multiply<dev::bf16>(warp);
    } else {
      execute_multiply<dev::f16>(warp);
    }
    release(warp);
  } else {
    wait();
  }
  std::memcpy(c, warp->d[thread->lane], sizeof(warp->d[0]));
}

}  // namespace fgk::emulation::core
