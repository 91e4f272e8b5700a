# SPDX-License-Identifier: Apache-2.0
# fgk_cuda_emulator executes CUDA kernels on the CPU. Code that links it is compiled against the emulated device layer.
# fgk_add_emulated_test(NAME SOURCES...) adds a test that does: once as it is, and once more under AddressSanitizer and
# UndefinedBehaviorSanitizer as NAME.sanitized. SOURCES may hold .cu files.
enable_testing()

set(FGK_EMULATOR_SOURCES)
foreach(file fiber global_memory launch mbarrier options ordering shared_memory site warp)
  list(APPEND FGK_EMULATOR_SOURCES csrc/tests/cuda_emulation/${file}.cpp)
endforeach()

function(fgk_add_emulator target)
  add_library(${target} STATIC ${FGK_EMULATOR_SOURCES})
  target_include_directories(${target} PUBLIC csrc csrc/tests csrc/tests/cuda_emulation)
  target_compile_definitions(${target} PUBLIC FGK_CUDA_EMULATION)
  # -O3 makes kernels no faster here, only slower to compile.
  target_compile_options(${target} PUBLIC -O2)
  target_link_libraries(${target} PUBLIC Threads::Threads)
  if(ARGN)
    target_compile_options(${target} PUBLIC ${ARGN})
    target_link_options(${target} PUBLIC ${ARGN})
  endif()
  if("${FGK_SANITIZE};${ARGN}" MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The check for uses after return would give each of the fibers of each block a second stack: 10 ms per block.
    target_compile_options(${target} PUBLIC --param=asan-use-after-return=0)
  endif()
  if(FGK_SANITIZE MATCHES "thread")
    # A launch is one OS thread, whatever its fibers do, and ThreadSanitizer cannot follow a change of stacks.
    target_compile_options(${target} PUBLIC -fno-sanitize=thread)
  endif()
endfunction()

set(FGK_EMULATORS fgk_cuda_emulator)
fgk_add_emulator(fgk_cuda_emulator)
# Cross-built tests run under an emulator of the processor, where AddressSanitizer does not.
if(NOT FGK_SANITIZE AND NOT CMAKE_CROSSCOMPILING)
  fgk_add_emulator(fgk_cuda_emulator_sanitized -fsanitize=address,undefined -fno-sanitize-recover=all
                   -fno-omit-frame-pointer -g1)
  list(APPEND FGK_EMULATORS fgk_cuda_emulator_sanitized)
endif()

function(fgk_add_emulated_test name)
  set(sources)
  foreach(source ${ARGN})
    get_filename_component(file ${source} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
    if(file MATCHES "\\.cu$")
      # The host compiler knows no .cu, and to CMake it may be a CUDA source already.
      get_filename_component(base ${file} NAME_WE)
      set(wrapper ${CMAKE_BINARY_DIR}/emulated/${name}/${base}.cpp)
      file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${file}\"\n")
      set(file ${wrapper})
    endif()
    list(APPEND sources ${file})
  endforeach()
  foreach(emulator ${FGK_EMULATORS})
    string(REPLACE fgk_cuda_emulator ${name} target ${emulator})
    string(REPLACE _sanitized .sanitized test ${target})
    add_executable(${target} ${sources})
    target_link_libraries(${target} PRIVATE ${emulator})
    # check.h asks for the ISA level.
    target_link_libraries(${target} PRIVATE fgk_kernels)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    add_test(NAME ${test} COMMAND ${target})
  endforeach()
endfunction()

fgk_add_emulated_test(test_cuda_primitives csrc/tests/cuda_emulation/test_primitives.cpp)
fgk_add_emulated_test(test_cuda_planted_bugs csrc/tests/cuda_emulation/test_planted_bugs.cpp)
fgk_add_emulated_test(test_cuda_planted_accesses csrc/tests/cuda_emulation/test_planted_accesses.cpp)
fgk_add_emulated_test(test_cuda_planted_mbarriers csrc/tests/cuda_emulation/test_planted_mbarriers.cpp)
fgk_add_emulated_test(test_cuda_emulator csrc/tests/cuda_emulation/test_emulator.cpp)
fgk_add_emulated_test(test_cuda_shadow csrc/tests/cuda_emulation/test_shadow.cpp)

# The primitives' test on a GPU. Compiling it needs none.
if(FGK_CUDA)
  add_executable(test_device_conformance csrc/tests/cuda/test_device_conformance.cu)
  target_include_directories(test_device_conformance PRIVATE csrc csrc/tests csrc/tests/cuda_emulation)
  target_compile_options(test_device_conformance PRIVATE ${FGK_CUDA_FLAGS})
  target_link_libraries(test_device_conformance PRIVATE fgk_kernels)
  set_target_properties(test_device_conformance PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME test_device_conformance COMMAND test_device_conformance)
  set_tests_properties(test_device_conformance PROPERTIES SKIP_RETURN_CODE 77)
endif()
