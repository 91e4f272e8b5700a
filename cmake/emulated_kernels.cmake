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
foreach(emulator ${FGK_EMULATORS})
  string(REPLACE fgk_cuda_emulator fgk_cuda_kernels_emulated kernels ${emulator})
  add_library(${kernels} STATIC EXCLUDE_FROM_ALL ${FGK_EMULATED_SOURCES})
  target_link_libraries(${kernels} PUBLIC ${emulator})
  if(emulator MATCHES "sanitized")
    # Half the time to compile.
    target_compile_options(${kernels} PRIVATE -O1)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Registers of a tile that a guard leaves out are neither written nor read, which GCC cannot see.
    target_compile_options(${kernels} PRIVATE -Wno-maybe-uninitialized)
  endif()
endforeach()

# fgk_add_cuda_test(<name> <source>): a test that executes these kernels, once as it is and once with sanitizers.
function(fgk_add_cuda_test name source)
  fgk_add_emulated_test(${name} ${source})
  foreach(emulator ${FGK_EMULATORS})
    string(REPLACE fgk_cuda_emulator ${name} test ${emulator})
    string(REPLACE fgk_cuda_emulator fgk_cuda_kernels_emulated kernels ${emulator})
    target_link_libraries(${test} PRIVATE ${kernels})
    if(emulator MATCHES "sanitized")
      target_compile_options(${test} PRIVATE -O1)
    endif()
  endforeach()
endfunction()

if(FGK_BUILD_OPS)
  add_library(fgkernels_emulated SHARED)
  fgk_shared_library(fgkernels_emulated)
  fgk_add_operators(fgkernels_emulated NAMESPACE ${FGK_OP_NAMESPACE}_emulated KEY CPU
                    DEVICE csrc/tests/cuda_emulation/device_emulated.cpp SCHEMAS)
  target_link_libraries(fgkernels_emulated PRIVATE fgk_cuda_kernels_emulated)
  install(TARGETS fgkernels_emulated LIBRARY DESTINATION . COMPONENT development)

  # For tools/cuda_audit.py. Only its launches are recorded, by the name that C++ gives the emulator's launch.
  add_executable(launch_shapes csrc/tests/audit/launch_shapes.cpp)
  target_link_libraries(launch_shapes PRIVATE fgk_cuda_kernels_emulated)
  target_link_options(
    launch_shapes PRIVATE "-Wl,--wrap=_ZN3fgk9emulation4core6launchEPKcRKNS_3dev6LaunchEPFvPKvES9_")
  set_target_properties(launch_shapes PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()
