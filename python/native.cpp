// SPDX-License-Identifier: Apache-2.0
// fgkernels._native: facts about the build and the CPU, ISA override, machine limits, host-side planners. It carries no
// tensor, reaches libfgkernels through the C API only, and every operator works without it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bin_pack.h"
#include "fgkernels.h"

#define FGK_STRING(x) FGK_STRING_OF(x)
#define FGK_STRING_OF(x) #x

namespace py = pybind11;

namespace {

std::vector<std::string> levels(int (*wanted)(int)) {
  std::vector<std::string> names;
  for (int i = 0; i < fgk_isa_count(); ++i) {
    if (wanted(i)) names.emplace_back(fgk_isa_name(i));
  }
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string isa() {
  const int current = fgk_isa_current();
  if (current < 0) throw std::runtime_error(fgk_last_error());
  return fgk_isa_name(current);
}

void set_isa(const std::string& name) {
  const int status = fgk_isa_set(name.c_str());
  if (status == 0) return;
  throw std::invalid_argument("name: expected one of " + joined(levels(fgk_isa_supported)) + " on this machine, got '" +
                              name + (status == -1 ? "', which is no ISA level" : "', which cannot run here"));
}

py::dict cpu_features() {
  py::dict features;
  for (int i = 0; i < fgk_cpu_feature_count(); ++i) {
    features[fgk_cpu_feature_name(i)] = fgk_cpu_feature_present(i) != 0;
  }
  return features;
}

py::dict build_info() {
  py::dict info;
  info["version"] = fgk_version();
  info["compiler"] = fgk_compiler();
  info["isas"] = levels(fgk_isa_compiled);
  info["torch_target_version"] = FGK_STRING(FGK_TORCH_TARGET_VERSION);
  info["pybind11"] = FGK_STRING(PYBIND11_VERSION_MAJOR) "." FGK_STRING(PYBIND11_VERSION_MINOR);
  return info;
}

// Runs a probe without the GIL; negative means an error, and the level's own error is no ValueError.
template <class Probe>
double measured(const Probe& probe) {
  double rate;
  {
    py::gil_scoped_release release;
    rate = probe();
  }
  if (rate >= 0) return rate;
  const std::string error = fgk_last_error();
  if (fgk_isa_current() < 0) throw std::runtime_error(error);
  throw std::invalid_argument(error);
}

double probe_fma(const std::string& dtype, int threads, double seconds) {
  const char* names[] = {"float32", "float64", "bfloat16", "int8", "exp_fma"};
  for (int type = 0; type < 5; ++type) {
    if (dtype == names[type]) return measured([&] { return fgk_probe_fma(type, threads, seconds); });
  }
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16, int8 or exp_fma, got '" + dtype + "'");
}

double probe_read(int threads, double megabytes, double seconds) {
  return measured([&] { return fgk_probe_read(threads, megabytes, seconds); });
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "Build and CPU facts, ISA override, machine limits and host-side planners of fgkernels.";
  m.def("isa", &isa, "ISA level the kernels use now. RuntimeError if FGKERNELS_ISA is unusable.");
  m.def("isas", [] { return levels(fgk_isa_compiled); }, "ISA levels compiled in, ascending.");
  m.def("supported_isas", [] { return levels(fgk_isa_supported); }, "ISA levels this machine can run, ascending.");
  m.def("set_isa", &set_isa, py::arg("name"), "Make all kernels use this level from now on. ValueError if it cannot.");
  m.def("cpu_features", &cpu_features, "CPU features that decide between the levels.");
  m.def("build_info", &build_info, "Version, compiler and levels of libfgkernels.");
  m.def("probe_fma", &probe_fma, py::arg("dtype") = "float32", py::arg("threads") = 1, py::arg("seconds") = 0.2,
        "Multiply-add rate of `threads` threads together in GFLOP/s (int8: GOP/s), at the current ISA level.\n"
        "bfloat16 and int8 are dot-product instructions at level avx512_bf16, fp32 multiply-adds elsewhere.\n"
        "exp_fma: 1e9 state updates of a selective scan per second (an exponential, and what is around it).");
  m.def("probe_read", &probe_read, py::arg("threads") = 1, py::arg("megabytes") = 256.0, py::arg("seconds") = 0.3,
        "Streaming read bandwidth of `threads` threads together over `megabytes` in total, in GB/s.");
  m.def("bin_pack", &fgk::bin_pack, py::arg("lengths"), py::arg("capacity"),
        "Group the indices of `lengths` into bins whose lengths add up to at most `capacity`: first-fit decreasing,\n"
        "at most 11/9 of the fewest bins + 6/9 (Dosa 2007). ValueError if a length is negative or above the capacity.");
}
