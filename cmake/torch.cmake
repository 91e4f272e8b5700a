# SPDX-License-Identifier: Apache-2.0
# fgk_torch: headers of the LibTorch stable ABI and libtorch_cpu, found without importing torch.
# -DFGK_TORCH_DIR=<.../site-packages/torch> names the torch package; by default it is the interpreter's own.
if(NOT FGK_TORCH_DIR)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE FGK_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
if(NOT EXISTS "${FGK_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "No torch >= 2.10 found (looked in '${FGK_TORCH_DIR}'): install torch for ${Python_EXECUTABLE}, "
                      "or pass -DFGK_TORCH_DIR=<site-packages>/torch, or -DFGK_BUILD_OPS=OFF for the kernels alone.")
endif()
message(STATUS "torch for headers and linking: ${FGK_TORCH_DIR}")

add_library(fgk_torch INTERFACE)
target_include_directories(fgk_torch SYSTEM INTERFACE ${FGK_TORCH_DIR}/include)
target_compile_options(fgk_torch INTERFACE "-ffile-prefix-map=${FGK_TORCH_DIR}/=torch/")
if(APPLE)
  target_link_libraries(fgk_torch INTERFACE ${FGK_TORCH_DIR}/lib/libtorch_cpu.dylib)
else()
  # -rpath-link lets the linker resolve torch_cpu's own dependencies and leaves no trace in our library.
  target_link_libraries(fgk_torch INTERFACE ${FGK_TORCH_DIR}/lib/libtorch_cpu.so)
  target_link_options(fgk_torch INTERFACE "-Wl,-rpath-link,${FGK_TORCH_DIR}/lib")
endif()
