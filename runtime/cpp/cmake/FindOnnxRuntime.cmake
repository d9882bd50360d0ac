# Finds ONNX Runtime's C++ headers and library and defines OnnxRuntime::OnnxRuntime.
# Looks under PRTOOL_ONNXRUNTIME_ROOT first (setup.sh makes it), then where the system's package has them.
find_path(OnnxRuntime_INCLUDE_DIR onnxruntime_cxx_api.h HINTS "${PRTOOL_ONNXRUNTIME_ROOT}/include" PATH_SUFFIXES onnxruntime onnxruntime/core/session)
find_library(OnnxRuntime_LIBRARY onnxruntime HINTS "${PRTOOL_ONNXRUNTIME_ROOT}/lib")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime REQUIRED_VARS OnnxRuntime_LIBRARY OnnxRuntime_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "run setup.sh, install libonnxruntime-dev, or set PRTOOL_ONNXRUNTIME_ROOT")
if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
  add_library(OnnxRuntime::OnnxRuntime UNKNOWN IMPORTED)
  set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES IMPORTED_LOCATION "${OnnxRuntime_LIBRARY}"
                                                           INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${OnnxRuntime_INCLUDE_DIR}"
                                                           INTERFACE_INCLUDE_DIRECTORIES "${OnnxRuntime_INCLUDE_DIR}")
endif()
mark_as_advanced(OnnxRuntime_INCLUDE_DIR OnnxRuntime_LIBRARY)
