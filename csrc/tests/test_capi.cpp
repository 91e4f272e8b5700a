// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <string>

#include "check.h"
#include "fgkernels.h"

TEST(version_has_three_numbers) {
  int major = -1, minor = -1, patch = -1;
  CHECK_EQ(std::sscanf(fgk_version(), "%d.%d.%d", &major, &minor, &patch), 3);
  CHECK(std::strlen(fgk_compiler()) > 0);
}

TEST(levels_agree_with_the_kernels) {
  CHECK_EQ(fgk_isa_count(), fgk::kIsaCount);
  for (int i = 0; i < fgk_isa_count(); ++i) {
    CHECK_EQ(std::string(fgk_isa_name(i)), fgk::isa_name(static_cast<fgk::Isa>(i)));
    CHECK_EQ(fgk_isa_supported(i) != 0, fgk::isa_supported(static_cast<fgk::Isa>(i)));
    if (fgk_isa_supported(i)) {
      CHECK_EQ(fgk_isa_set(fgk_isa_name(i)), 0);
      CHECK_EQ(fgk_isa_current(), i);
    }
  }
}

TEST(out_of_range_is_null_or_zero) {
  for (int bad : {-1, 1000}) {
    CHECK(fgk_isa_name(bad) == nullptr);
    CHECK(fgk_cpu_feature_name(bad) == nullptr);
    CHECK_EQ(fgk_isa_compiled(bad) + fgk_isa_supported(bad) + fgk_cpu_feature_present(bad), 0);
  }
  CHECK_EQ(fgk_isa_set("sse9"), -1);
  CHECK_EQ(fgk_isa_set(nullptr), -1);
}

TEST(features_are_named) {
  CHECK(fgk_cpu_feature_count() > 0);
  for (int i = 0; i < fgk_cpu_feature_count(); ++i) CHECK(std::strlen(fgk_cpu_feature_name(i)) > 0);
}

TEST(probe_errors_come_back_as_text) {
  CHECK(fgk_probe_fma(FGK_PROBE_FLOAT32, 0, 0.1) < 0);
  CHECK(std::strstr(fgk_last_error(), "threads") != nullptr);
  CHECK(fgk_probe_fma(17, 1, 0.1) < 0);
  CHECK(std::strstr(fgk_last_error(), "type") != nullptr);
  CHECK(fgk_probe_read(1, -3, 0.1) < 0);
  CHECK(std::strstr(fgk_last_error(), "megabytes") != nullptr);
  CHECK(fgk_probe_fma(FGK_PROBE_FLOAT64, 1, 0.01) > 0);
}
