// SPDX-License-Identifier: Apache-2.0
// A test program's whole frame: TEST(name) { CHECK(...); }. Include it once per program; it brings main(), unless
// FGK_CHECK_OWN_MAIN is defined.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>

#include "kernels/cpu/isa.h"

namespace check {

using Function = void (*)();

struct Test {
  const char* name;
  Function function;
  Test* next;
  static Test*& first() {
    static Test* list = nullptr;
    return list;
  }
  Test(const char* test_name, Function test_function) : name(test_name), function(test_function), next(nullptr) {
    Test** tail = &first();
    while (*tail != nullptr) tail = &(*tail)->next;
    *tail = this;
  }
};

inline int& failures() {
  static int count = 0;
  return count;
}

inline std::ostream& fail(const char* file, int line) {
  ++failures();
  return std::cerr << file << ":" << line << ": ";
}

// Exit code that ctest counts as "skipped".
constexpr int kSkipped = 77;

inline bool level_is_missing() {
  const char* wanted = std::getenv("FGKERNELS_ISA");
  if (wanted == nullptr) return false;
  for (int i = 0; i < fgk::kIsaCount; ++i) {
    const fgk::Isa isa = static_cast<fgk::Isa>(i);
    if (std::strcmp(wanted, fgk::isa_name(isa)) == 0) return !fgk::isa_supported(isa);
  }
  return false;
}

inline int run() {
  if (level_is_missing()) {
    std::cout << "skipped: this machine cannot run level " << std::getenv("FGKERNELS_ISA") << "\n";
    return kSkipped;
  }
  int tests = 0;
  int failed = 0;
  for (Test* test = Test::first(); test != nullptr; test = test->next, ++tests) {
    const int before = failures();
    try {
      test->function();
    } catch (const std::exception& e) {
      fail(test->name, 0) << "threw " << e.what() << "\n";
    }
    if (failures() != before) {
      ++failed;
      std::cerr << "FAILED " << test->name << "\n";
    }
  }
  std::cout << tests - failed << " passed, " << failed << " failed\n";
  return failed == 0 && tests > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                              \
  static void name();                           \
  static check::Test name##_entry(#name, name); \
  static void name()

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) check::fail(__FILE__, __LINE__) << #condition << "\n"; \
  } while (false)

#define CHECK_EQ(got, expected)                                                                        \
  do {                                                                                                 \
    const auto& got_ = (got);                                                                          \
    const auto& expected_ = (expected);                                                                \
    if (!(got_ == expected_))                                                                          \
      check::fail(__FILE__, __LINE__) << #got << " is " << got_ << ", expected " << expected_ << "\n"; \
  } while (false)

// |got - expected| <= tolerance; a NaN on either side fails.
#define CHECK_NEAR(got, expected, tolerance)                                                           \
  do {                                                                                                 \
    const double got_ = static_cast<double>(got);                                                      \
    const double expected_ = static_cast<double>(expected);                                            \
    if (!(std::fabs(got_ - expected_) <= static_cast<double>(tolerance)))                              \
      check::fail(__FILE__, __LINE__) << #got << " is " << got_ << ", expected " << expected_ << "\n"; \
  } while (false)

#define CHECK_THROWS(expression, type)                                                            \
  do {                                                                                            \
    bool thrown_ = false;                                                                         \
    try {                                                                                         \
      static_cast<void>(expression);                                                              \
    } catch (const type&) {                                                                       \
      thrown_ = true;                                                                             \
    }                                                                                             \
    if (!thrown_) check::fail(__FILE__, __LINE__) << #expression << " did not throw " #type "\n"; \
  } while (false)

#if !defined(FGK_CHECK_OWN_MAIN)
int main() { return check::run(); }
#endif
