// The headers of the TensorRT library that this source is compiled for: TensorRT, or TensorRT-RTX with PRTOOL_TRT_RTX.
#pragma once

// Both libraries call their classes the same. Their inline functions call through tables that may differ, and a linker would
// keep one of two functions of one name: the classes of one of them get another name here. No name of a class crosses into
// the library; what it exports is C.
#if defined(PRTOOL_TRT_RTX)
#define nvinfer1 nvinfer1_rtx
#define nvonnxparser nvonnxparser_rtx
#define PRTOOL_TRT_LIBRARY rtx
#else
#define PRTOOL_TRT_LIBRARY enterprise
#endif

#include <NvInfer.h>
#include <NvOnnxParser.h>
