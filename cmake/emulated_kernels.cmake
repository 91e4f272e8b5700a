# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels as C++ for the emulator, and libfgkernels_emulated: the operators that run them on CPU tensors in a
# namespace of their own. For the tests of a development build; no wheel holds it.
include(cmake/emulation.cmake)

# A source has one language per folder of CMake's, and here .cu files are CUDA: the host compiler gets them through
# files that include them.
set(FGK_EMULATED_SOURCES)
file(GLOB sources CONFIGURE_DEPENDS csrc/kernels/cuda/*.cu)
foreach(source ${sources})
  get_filename_component(name ${source} NAME_WE)
  set(wrapper ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
  file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"kernels/cuda/${name}.cu\"\n")
  list(APPEND FGK_EMULATED_SOURCES ${wrapper})
endforeach()
add_library(fgk_cuda_kernels_emulated STATIC ${FGK_EMULATED_SOURCES})
target_include_directories(fgk_cuda_kernels_emulated PRIVATE csrc)
target_link_libraries(fgk_cuda_kernels_emulated PUBLIC fgk_cuda_emulator)

if(FGK_BUILD_OPS)
  add_library(fgkernels_emulated SHARED)
  fgk_shared_library(fgkernels_emulated)
  fgk_add_operators(fgkernels_emulated NAMESPACE ${FGK_OP_NAMESPACE}_emulated KEY CPU
                    DEVICE csrc/tests/cuda_emulation/device_emulated.cpp SCHEMAS)
  target_include_directories(fgkernels_emulated PRIVATE csrc)
  target_link_libraries(fgkernels_emulated PRIVATE fgk_cuda_kernels_emulated)
  install(TARGETS fgkernels_emulated LIBRARY DESTINATION . COMPONENT development)
endif()
