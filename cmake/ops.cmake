# SPDX-License-Identifier: Apache-2.0
# The operator libraries: one set of sources, compiled once per library with its device and its dispatch key.
set(FGK_OP_NAMESPACE fgkernels CACHE STRING "Namespace of the operators in torch.ops")
# Oldest torch the operators run on: 2.10.
set(FGK_TORCH_TARGET_VERSION 0x020a000000000000)

file(GLOB FGK_OPS_SOURCES CONFIGURE_DEPENDS csrc/ops/*.cpp)
list(FILTER FGK_OPS_SOURCES EXCLUDE REGEX "/device_[a-z]+\\.cpp$")

# Only the C API is visible: no copy of a std:: template of ours can stand in for another library's.
function(fgk_shared_library target)
  if(NOT APPLE)
    target_link_options(${target} PRIVATE "-Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/exports.map")
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/exports.map)
    if(NOT FGK_SANITIZE)
      target_link_options(${target} PRIVATE -Wl,--no-undefined)
    endif()
  endif()
endfunction()

# fgk_add_operators(<target> NAMESPACE <name> KEY <dispatch key> DEVICE <source of csrc/ops/device.h> [SCHEMAS])
function(fgk_add_operators target)
  cmake_parse_arguments(PARSE_ARGV 1 arg SCHEMAS "NAMESPACE;KEY;DEVICE" "")
  target_sources(${target} PRIVATE ${FGK_OPS_SOURCES} ${arg_DEVICE})
  target_compile_definitions(
    ${target} PRIVATE TORCH_TARGET_VERSION=${FGK_TORCH_TARGET_VERSION} FGK_OP_NAMESPACE=${arg_NAMESPACE}
                      FGK_DISPATCH_KEY=${arg_KEY} $<$<BOOL:${arg_SCHEMAS}>:FGK_DEFINE_SCHEMAS>)
  target_link_libraries(${target} PRIVATE fgk_torch)
endfunction()

if(FGK_BUILD_OPS)
  include(cmake/torch.cmake)
endif()
