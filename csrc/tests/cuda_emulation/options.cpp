// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>

#include "core.h"

namespace fgk::emulation {
namespace {

constexpr const char* kOrderVariable = "FGKERNELS_EMULATION_ORDER";
constexpr const char* kShadowVariable = "FGKERNELS_EMULATION_SHADOW";
constexpr dev::Limits kH100{132, 232448};

std::mutex mutex;
std::optional<Options> chosen;
dev::Limits device_limits = kH100;

uint64_t fresh_seed() {
  std::random_device source;
  return source();
}

uint64_t parse_seed(const std::string& text, const char* value) {
  char* end = nullptr;
  errno = 0;
  const uint64_t seed = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos || *end != '\0' || errno != 0) {
    throw std::invalid_argument(std::string(kOrderVariable) + " is '" + value + "': the seed is not a number");
  }
  return seed;
}

Options from_environment() {
  Options options;
  const char* order = std::getenv(kOrderVariable);
  const std::string text = order == nullptr ? "random" : order;
  const std::string prefix = "random:";
  if (text == "fifo") {
    options.order = Order::fifo;
  } else if (text == "lifo") {
    options.order = Order::lifo;
  } else if (text == "random") {
    options.seed = fresh_seed();
  } else if (text.compare(0, prefix.size(), prefix) == 0) {
    options.seed = parse_seed(text.substr(prefix.size()), order);
  } else {
    throw std::invalid_argument(std::string(kOrderVariable) + " is '" + text +
                                "', expected fifo, lifo, random or random:<seed>");
  }
  const char* shadow = std::getenv(kShadowVariable);
  if (shadow != nullptr && std::strcmp(shadow, "0") != 0 && std::strcmp(shadow, "1") != 0) {
    throw std::invalid_argument(std::string(kShadowVariable) + " is '" + shadow + "', expected 0 or 1");
  }
  options.shadow = shadow == nullptr || *shadow == '1';
  return options;
}

}  // namespace

void set_options(const Options& options) {
  const std::lock_guard<std::mutex> lock(mutex);
  chosen = options;
}

void reset_options() {
  const std::lock_guard<std::mutex> lock(mutex);
  chosen.reset();
}

void set_limits(const dev::Limits& limits) {
  const std::lock_guard<std::mutex> lock(mutex);
  device_limits = limits;
}

const char* fault_name(FaultKind kind) {
  switch (kind) {
    case FaultKind::out_of_bounds:
      return "out of bounds";
    case FaultKind::misaligned:
      return "misaligned access";
    case FaultKind::shared_overrun:
      return "shared memory overrun";
    case FaultKind::uninitialized_shared:
      return "uninitialised shared memory";
    case FaultKind::uninitialized_global:
      return "uninitialised output";
    case FaultKind::race_shared:
      return "race in shared memory";
    case FaultKind::race_global:
      return "race in global memory";
    case FaultKind::block_conflict:
      return "conflict between blocks";
    case FaultKind::read_only_load:
      return "read-only load of written memory";
    case FaultKind::in_flight:
      return "copy in flight";
    case FaultKind::pending_copies:
      return "pending copies";
    case FaultKind::bad_copy_size:
      return "bad copy size";
    case FaultKind::bad_mbarrier:
      return "bad mbarrier";
    case FaultKind::divergent_collective:
      return "divergent collective";
    case FaultKind::divergent_barrier:
      return "divergent barrier";
    case FaultKind::exited_thread:
      return "thread has returned";
    case FaultKind::deadlock:
      return "deadlock";
    case FaultKind::aliased_buffers:
      return "aliased buffers";
  }
  return "unknown fault";
}

namespace core {

Options current_options() {
  const std::lock_guard<std::mutex> lock(mutex);
  return chosen.has_value() ? *chosen : from_environment();
}

std::string repeat_hint(const Options& options) {
  const std::string order = options.order == Order::fifo   ? "fifo"
                            : options.order == Order::lifo ? "lifo"
                                                           : "random:" + std::to_string(options.seed);
  return "repeat with " + std::string(kOrderVariable) + "=" + order;
}

dev::Limits limits() {
  const std::lock_guard<std::mutex> lock(mutex);
  return device_limits;
}

}  // namespace core
}  // namespace fgk::emulation
