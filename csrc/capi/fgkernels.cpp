// SPDX-License-Identifier: Apache-2.0
#include "fgkernels.h"

#include <exception>
#include <string>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/probe.h"

#define FGK_STRING(x) FGK_STRING_OF(x)
#define FGK_STRING_OF(x) #x

namespace {

thread_local std::string last_error;

// Runs body() and turns an exception into `failure` and a text for fgk_last_error().
template <class Result, class Body>
Result guarded(Result failure, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& e) {
    try {
      last_error = e.what();
    } catch (...) {
      last_error.clear();
    }
  } catch (...) {
    last_error.clear();
  }
  return failure;
}

bool known(int isa) { return isa >= 0 && isa < fgk::kIsaCount; }

const fgk::CpuFeature* feature_at(int index) {
  int count = 0;
  const fgk::CpuFeature* features = fgk::cpu_features(&count);
  return index >= 0 && index < count ? features + index : nullptr;
}

}  // namespace

extern "C" {

const char* fgk_version(void) { return FGK_STRING(FGK_VERSION); }

const char* fgk_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

const char* fgk_last_error(void) { return last_error.c_str(); }

int fgk_isa_count(void) { return fgk::kIsaCount; }
const char* fgk_isa_name(int isa) { return known(isa) ? fgk::isa_name(static_cast<fgk::Isa>(isa)) : nullptr; }
int fgk_isa_compiled(int isa) { return known(isa) && fgk::isa_compiled(static_cast<fgk::Isa>(isa)); }
int fgk_isa_supported(int isa) { return known(isa) && fgk::isa_supported(static_cast<fgk::Isa>(isa)); }

int fgk_isa_current(void) {
  return guarded(-1, [] { return static_cast<int>(fgk::current_isa()); });
}

int fgk_isa_set(const char* name) {
  return guarded(-1, [&] { return fgk::set_isa(name); });
}

int fgk_cpu_feature_count(void) {
  int count = 0;
  fgk::cpu_features(&count);
  return count;
}

const char* fgk_cpu_feature_name(int feature) {
  const fgk::CpuFeature* found = feature_at(feature);
  return found != nullptr ? found->name : nullptr;
}

int fgk_cpu_feature_present(int feature) {
  const fgk::CpuFeature* found = feature_at(feature);
  return found != nullptr && found->present;
}

double fgk_probe_fma(int type, int threads, double seconds) {
  return guarded(-1.0, [&] { return fgk::probe_fma(static_cast<fgk::ProbeType>(type), threads, seconds); });
}

double fgk_probe_read(int threads, double megabytes, double seconds) {
  return guarded(-1.0, [&] { return fgk::probe_read(threads, megabytes, seconds); });
}

}  // extern "C"
