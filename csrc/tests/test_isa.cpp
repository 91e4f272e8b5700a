// SPDX-License-Identifier: Apache-2.0
// Levels and their choice. Runs as one program; cases that need a fresh reading of the environment fork.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace {

std::vector<fgk::Isa> supported() {
  std::vector<fgk::Isa> levels;
  for (int i = 0; i < fgk::kIsaCount; ++i) {
    if (fgk::isa_supported(static_cast<fgk::Isa>(i))) levels.push_back(static_cast<fgk::Isa>(i));
  }
  return levels;
}

// Runs body() in a child process, whose library state is as at program start; true when body returned true.
template <class Body>
bool in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string error_for(const char* value) {
  setenv("FGKERNELS_ISA", value, 1);
  try {
    fgk::current_isa();
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

// These come first: the children must fork before this process reads FGKERNELS_ISA.
TEST(environment_chooses_each_supported_level) {
  for (fgk::Isa isa : supported()) {
    CHECK(in_child([&] {
      setenv("FGKERNELS_ISA", fgk::isa_name(isa), 1);
      return fgk::current_isa() == isa;
    }));
  }
}

TEST(environment_with_unknown_level_names_the_variable_the_value_and_the_choices) {
  CHECK(in_child([] {
    const std::string error = error_for("sse9");
    return error.find("FGKERNELS_ISA") != std::string::npos && error.find("'sse9'") != std::string::npos &&
           error.find("baseline") != std::string::npos && error_for("baseline") == error;  // read once
  }));
}

TEST(environment_with_a_level_of_another_processor_is_refused) {
#if defined(__aarch64__)
  const char* foreign = "avx512";
#else
  const char* foreign = "neon";
#endif
  CHECK(in_child([&] { return error_for(foreign).find("built without") != std::string::npos; }));
  CHECK_EQ(fgk::set_isa(foreign), -2);
}

TEST(set_isa_overrides_a_bad_environment) {
  CHECK(in_child([] {
    return !error_for("sse9").empty() && fgk::set_isa("baseline") == 0 && fgk::current_isa() == fgk::Isa::baseline;
  }));
}

TEST(without_environment_the_best_level_is_used) {
  CHECK(in_child([] {
    unsetenv("FGKERNELS_ISA");
    return fgk::current_isa() == supported().back();
  }));
}

TEST(baseline_always_runs_and_supported_implies_compiled) {
  CHECK(fgk::isa_supported(fgk::Isa::baseline));
  for (fgk::Isa isa : supported()) CHECK(fgk::isa_compiled(isa));
}

TEST(set_isa_takes_every_supported_level) {
  for (fgk::Isa isa : supported()) {
    CHECK_EQ(fgk::set_isa(fgk::isa_name(isa)), 0);
    CHECK(fgk::current_isa() == isa);
  }
}

TEST(set_isa_refuses_unknown_names_and_keeps_the_level) {
  const fgk::Isa before = fgk::current_isa();
  CHECK_EQ(fgk::set_isa("sse9"), -1);
  CHECK_EQ(fgk::set_isa(""), -1);
  CHECK_EQ(fgk::set_isa(nullptr), -1);
  CHECK(fgk::current_isa() == before);
}

TEST(out_of_range_levels_are_neither_compiled_nor_supported) {
  for (int i : {-1, fgk::kIsaCount}) {
    CHECK(!fgk::isa_compiled(static_cast<fgk::Isa>(i)));
    CHECK(!fgk::isa_supported(static_cast<fgk::Isa>(i)));
  }
}

TEST(levels_follow_from_the_features) {
  int count = 0;
  const fgk::CpuFeature* features = fgk::cpu_features(&count);
  const auto has = [&](const char* name) {
    for (int i = 0; i < count; ++i) {
      if (std::strcmp(features[i].name, name) == 0) return features[i].present;
    }
    return false;
  };
  CHECK(count > 0);
  if (fgk::isa_supported(fgk::Isa::avx2)) CHECK(has("avx2") && has("fma") && has("f16c"));
  if (fgk::isa_supported(fgk::Isa::avx512)) CHECK(has("avx512f") && has("avx512bw") && has("avx512vl"));
  if (fgk::isa_supported(fgk::Isa::avx512_bf16)) CHECK(has("avx512_bf16") && has("avx512_vnni"));
}

TEST(choosing_and_reading_from_many_threads_is_safe) {
  std::vector<std::thread> pool;
  for (int t = 0; t < 8; ++t) {
    pool.emplace_back([t] {
      const std::vector<fgk::Isa> levels = supported();
      for (int i = 0; i < 1000; ++i) {
        if (t % 2 == 0) {
          fgk::set_isa(fgk::isa_name(levels[static_cast<size_t>(i) % levels.size()]));
        } else if (!fgk::isa_supported(fgk::current_isa())) {
          std::abort();
        }
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
}
