# Engines on NVIDIA GPUs. CUDA's runtime is linked statically, and TensorRT and the driver are loaded when an engine is opened, so
# that one library runs on machines with and without a GPU.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES all-major)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)

set_target_properties(prtool_core PROPERTIES CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")

# The selection's kernels, and what every engine on a GPU works with.
target_sources(prtool_core PRIVATE src/cuda/cuda.cpp src/cuda/gpu_device.cpp src/cuda/stream_context.cpp src/cuda/select.cu)
set(PRTOOL_GPU_LIBRARIES CUDA::cudart_static ${CMAKE_DL_LIBS})
target_link_libraries(prtool_core PUBLIC ${PRTOOL_GPU_LIBRARIES})
if(PRTOOL_CUDA)
  target_sources(prtool_core PRIVATE src/engines/ort_gpu.cpp)
  target_compile_definitions(prtool_core PRIVATE PRTOOL_WITH_CUDA)
endif()

# Both libraries have the same sources and other headers.
function(prtool_tensorrt target include engine)
  add_library(${target} OBJECT src/engines/trt/engine.cpp src/engines/trt/library.cpp)
  target_include_directories(${target} PRIVATE src)
  target_include_directories(${target} SYSTEM PRIVATE ${include})
  target_compile_definitions(${target} PRIVATE ${ARGN})
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  # Objects of an object library reach no further than its consumers.
  target_sources(prtool_core INTERFACE $<TARGET_OBJECTS:${target}>)
  target_compile_definitions(prtool_core PRIVATE ${engine})
endfunction()
if(PRTOOL_TENSORRT_INCLUDE)
  prtool_tensorrt(prtool_trt ${PRTOOL_TENSORRT_INCLUDE} PRTOOL_WITH_TENSORRT)
endif()
if(PRTOOL_TENSORRT_RTX_INCLUDE)
  prtool_tensorrt(prtool_trt_rtx ${PRTOOL_TENSORRT_RTX_INCLUDE} PRTOOL_WITH_TENSORRT_RTX PRTOOL_TRT_RTX)
endif()
