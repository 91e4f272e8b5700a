# SPDX-License-Identifier: Apache-2.0
# Each csrc/tests/*.cpp is one program, run once per ISA level; a level the machine lacks counts as skipped. The emulator
# of CUDA kernels brings its own tests (emulation.cmake); csrc/tests/cuda_emulation/test_<family>_cuda.cpp execute the
# kernels in it, once as they are and once with ASan and UBSan: not again in a build that is sanitized as a whole, nor
# cross-built, where that is an emulator within an emulator.
enable_testing()
include(cmake/emulated_kernels.cmake)
if(NOT CMAKE_CROSSCOMPILING AND NOT FGK_SANITIZE)
  file(GLOB FGK_CUDA_TEST_SOURCES CONFIGURE_DEPENDS csrc/tests/cuda_emulation/test_*_cuda.cpp)
  foreach(source ${FGK_CUDA_TEST_SOURCES})
    get_filename_component(test ${source} NAME_WE)
    fgk_add_cuda_test(${test} ${source})
  endforeach()
endif()

# Tests that walk through the levels themselves run once.
set(FGK_TESTS_ONCE test_isa test_capi)

file(GLOB FGK_TEST_SOURCES CONFIGURE_DEPENDS csrc/tests/*.cpp)
foreach(source ${FGK_TEST_SOURCES})
  get_filename_component(test ${source} NAME_WE)
  add_executable(${test} ${source} $<TARGET_OBJECTS:fgk_capi>)
  target_include_directories(${test} PRIVATE csrc csrc/capi)
  target_link_libraries(${test} PRIVATE fgk_kernels)
  set_target_properties(${test} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(test IN_LIST FGK_TESTS_ONCE)
    add_test(NAME ${test} COMMAND ${test})
    continue()
  endif()
  foreach(level ${FGK_LEVELS})
    add_test(NAME ${test}.${level} COMMAND ${test})
    set_tests_properties(${test}.${level} PROPERTIES ENVIRONMENT FGKERNELS_ISA=${level} SKIP_RETURN_CODE 77)
  endforeach()
endforeach()
