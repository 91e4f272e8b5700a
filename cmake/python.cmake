# SPDX-License-Identifier: Apache-2.0
# fgkernels._native: optional, so a Python without development headers only costs this module.
find_package(Python COMPONENTS Interpreter REQUIRED OPTIONAL_COMPONENTS Development.Module)
if(NOT Python_Development.Module_FOUND)
  message(WARNING "Python.h not found (Debian: python3-dev): building without fgkernels._native; all operators work.")
  return()
endif()
if(NOT pybind11_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)

file(GLOB FGK_PYTHON_SOURCES CONFIGURE_DEPENDS python/*.cpp)
pybind11_add_module(_native MODULE NO_EXTRAS ${FGK_PYTHON_SOURCES})
target_link_libraries(_native PRIVATE fgkernels)
target_compile_definitions(_native PRIVATE FGK_TORCH_TARGET_VERSION=${FGK_TORCH_TARGET_VERSION})
set_target_properties(_native PROPERTIES INSTALL_RPATH "$ORIGIN")
if(FGK_BUILD_OPS AND NOT APPLE)
  target_link_options(_native PRIVATE "-Wl,-rpath-link,${FGK_TORCH_DIR}/lib")
endif()
install(TARGETS _native LIBRARY DESTINATION . COMPONENT package)
