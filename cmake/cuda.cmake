# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels and libfgkernels_cuda. FGK_CUDA=OBJECTS compiles everything and links nothing, which takes no CUDA
# build of torch: the kernels include no torch header, and any torch has those that the operators need.
#
# FGK_CUDA_ARCHITECTURES, in CMake's own syntax: <number>-real is machine code, <number>-virtual PTX that a newer
# driver compiles for newer GPUs. TORCH_CUDA_ARCH_LIST is turned into it by tools/cuda_toolkit.py.
set(FGK_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual CACHE STRING "GPU architectures to compile for")

if(NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
# The flags below say it all; CMake's own check of its property knows no 90a before CMake 3.25.
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

set(FGK_CUDA_FLAGS)
foreach(architecture ${FGK_CUDA_ARCHITECTURES})
  if(NOT architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
    message(FATAL_ERROR "FGK_CUDA_ARCHITECTURES: expected such as 80-real or 90-virtual, got '${architecture}'")
  endif()
  set(number ${CMAKE_MATCH_1})
  if(NOT architecture MATCHES "-virtual$")
    list(APPEND FGK_CUDA_FLAGS "-gencode=arch=compute_${number},code=sm_${number}")
  endif()
  if(NOT architecture MATCHES "-real$")
    list(APPEND FGK_CUDA_FLAGS "-gencode=arch=compute_${number},code=compute_${number}")
  endif()
endforeach()
# ptxas reports registers and spills, which the launcher below keeps beside each object for tools/cuda_audit.py.
list(APPEND FGK_CUDA_FLAGS -Xptxas=-v)
foreach(flag ${FGK_HOST_FLAGS})
  list(APPEND FGK_CUDA_FLAGS -Xcompiler=${flag})
endforeach()
if(FGK_WERROR)
  list(APPEND FGK_CUDA_FLAGS -Werror=all-warnings)
endif()

file(GLOB FGK_CUDA_SOURCES CONFIGURE_DEPENDS csrc/kernels/cuda/*.cu)
add_library(fgk_cuda_kernels OBJECT ${FGK_CUDA_SOURCES})
target_compile_options(fgk_cuda_kernels PRIVATE ${FGK_CUDA_FLAGS})
set_target_properties(fgk_cuda_kernels PROPERTIES CUDA_COMPILER_LAUNCHER "bash;${CMAKE_SOURCE_DIR}/tools/keep_output.sh")

if(FGK_BUILD_OPS)
  add_library(fgk_cuda_ops OBJECT)
  fgk_add_operators(fgk_cuda_ops NAMESPACE ${FGK_OP_NAMESPACE} KEY CUDA DEVICE csrc/ops/device_cuda.cpp)
  # LibTorch's C shim shows its CUDA part only then.
  target_compile_definitions(fgk_cuda_ops PRIVATE USE_CUDA)
  if(NOT FGK_CUDA STREQUAL "OBJECTS")
    set(torch_cuda ${FGK_TORCH_DIR}/lib/libtorch_cuda.so)
    if(NOT EXISTS ${torch_cuda})
      message(FATAL_ERROR "FGK_CUDA=${FGK_CUDA}: ${FGK_TORCH_DIR} is no CUDA build of torch (it has no libtorch_cuda). "
                          "Install one, or pass -DFGK_CUDA=OBJECTS to compile without linking, or -DFGK_CUDA=OFF.")
    endif()
    add_library(fgkernels_cuda SHARED $<TARGET_OBJECTS:fgk_cuda_kernels> $<TARGET_OBJECTS:fgk_cuda_ops>)
    fgk_shared_library(fgkernels_cuda)
    set_target_properties(fgkernels_cuda PROPERTIES LINKER_LANGUAGE CXX)
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(fgkernels_cuda PRIVATE fgk_torch ${torch_cuda} CUDA::cudart_static)
    # Where libtorch_cuda's own dependencies lie, for the linker only.
    file(GLOB nvidia_folders ${FGK_TORCH_DIR}/../nvidia/*/lib)
    foreach(folder ${nvidia_folders})
      target_link_options(fgkernels_cuda PRIVATE "-Wl,-rpath-link,${folder}")
    endforeach()
    install(TARGETS fgkernels_cuda LIBRARY DESTINATION . COMPONENT package)
  endif()
endif()
