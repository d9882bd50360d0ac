/* prtool: a pruned image encoder from a bundle, in any application. C API; prtool.hpp wraps it for C++.
 *
 *     prtool_encoder* encoder = NULL;
 *     if (prtool_open("bundle", NULL, &encoder) != PRTOOL_OK) { fputs(prtool_last_error(), stderr); return 1; }
 *     const char* files[] = {"cat.jpg", "dog.jpg"};
 *     float* embeddings = malloc(sizeof(float) * 2 * prtool_get_info(encoder)->embed_dim);
 *     if (prtool_encode_files(encoder, files, 2, prtool_keep_ratio(0.6), embeddings) != PRTOOL_OK) fputs(prtool_last_error(), stderr);
 *     prtool_free(encoder);
 *
 * Threads: every function may be called from many threads at once, on one encoder or several; results do not depend on it.
 * prtool_free is the exception: no other call may use the encoder while it runs or afterwards, so join your threads first.
 *
 * Ownership: the caller owns every buffer that it passes in, and nothing is kept of it after the call. Strings and structs
 * that a function returns belong to the encoder and live as long as it does; prtool_last_error's belongs to the calling
 * thread and lives until its next call. Nothing is written when a function does not return PRTOOL_OK.
 *
 * Telemetry: ONNX Runtime's is off. Loading this library sets ORT_DISABLE_TELEMETRY=1 in the process where the variable does not
 * exist; nothing connects to anything.
 *
 * Numbers: embeddings are float32, L2-normalised, embed_dim for each image, one image after another.
 */
#ifndef PRTOOL_H
#define PRTOOL_H

#include <stddef.h>
#include <stdint.h>

/* Of this header; prtool_version gives the library's. Before 1.0 the API may change with the minor version. */
#define PRTOOL_VERSION_MAJOR 0
#define PRTOOL_VERSION_MINOR 1
#define PRTOOL_VERSION_PATCH 0

/* The library is for Linux: its symbols are visible, and those of a static library (PRTOOL_STATIC) stay inside what links it. */
#if defined(PRTOOL_STATIC)
#define PRTOOL_API
#else
#define PRTOOL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The result of a call; the names follow the exceptions of the Python package. prtool_last_error has the message. */
typedef enum prtool_status {
    PRTOOL_OK = 0,
    PRTOOL_CONFIG = 1,             /* an option or argument has a value that cannot be used */
    PRTOOL_KEEP = 2,               /* a keep ratio or count is outside its range */
    PRTOOL_SHAPE = 3,              /* an array's shape is not what was declared, or a score is NaN */
    PRTOOL_DATA = 4,               /* a folder cannot be listed */
    PRTOOL_IMAGE = 5,              /* an image cannot be decoded */
    PRTOOL_BUNDLE = 6,             /* a bundle is missing, damaged, unsafe or of another schema, or lacks what was requested */
    PRTOOL_ENGINE = 7,             /* an engine failed while it loaded or ran, or the encoder is closed */
    PRTOOL_ENGINE_UNAVAILABLE = 8, /* this library was built without the engine, or it finds no device */
    PRTOOL_STORAGE = 9,            /* a file could not be written */
    PRTOOL_MEMORY = 10,            /* out of memory */
    PRTOOL_INTERNAL = 11           /* a fault of the library itself: please report it */
} prtool_status;

/* The message of the calling thread's last call that did not return PRTOOL_OK: what was wrong, which value it had, what was
 * possible, and what to do. "" where there was none. */
PRTOOL_API const char* prtool_last_error(void);

/* What a prtool_status means in general, such as "invalid bundle"; "unknown status" for any other number. */
PRTOOL_API const char* prtool_status_string(int status);

/* The library's version, "0.1.0". */
PRTOOL_API const char* prtool_version(void);

/* The engines that this library was built with, comma-separated: "ort,openvino". */
PRTOOL_API const char* prtool_engines(void);

/* How a bundle is run. Start from prtool_options_default(), then set what should differ. */
typedef struct prtool_options {
    uint32_t struct_size;  /* sizeof(prtool_options) of the header that the caller was compiled with; fields beyond it have defaults */
    int threads;           /* CPU threads of a call; 0 (default) takes all that this process may use */
    int verify;            /* 1 (default): check the SHA-256 of every file (about 1 s per GB); 0: only the manifest's seal, sizes and graphs */
    int spinning;          /* 1 (default): waiting CPU threads spin, for the lowest latency; 0: they yield, for machines shared with others */
    int device;            /* number of the GPU, for the engines that have one; default 0 */
    int cuda_graphs;       /* 1: trt and trt-rtx replay each batch and keep as one CUDA graph after its first call; default 0 */
    int jpeg_scaling;      /* 1: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, where twice what is resized to is left: about
                            * twice as fast, with pixels that differ by less than 1 of 255 on average (docs/cpp.md); default 0: every pixel */
    const char* engine;    /* "ort" (default), "ort-cuda", "openvino", "trt", "trt-rtx" */
    const char* mode;      /* "fused" (default: one graph), "split" (selection between graphs, where patches are ranked), "full" (unpruned, the baseline) */
    const char* precision; /* "fp32" (default), or another that the bundle holds */
    const char* cache;     /* folder of engines that 'prtool build' wrote; NULL (default) takes the user's */
} prtool_options;

static inline prtool_options prtool_options_default(void) {
    prtool_options options = {sizeof(prtool_options), 0, 1, 1, 0, 0, 0, "ort", "fused", "fp32", NULL};
    return options;
}

typedef struct prtool_encoder prtool_encoder;

/* Opens a bundle directory and loads its graphs; *encoder is to be freed with prtool_free. options may be NULL for the defaults. */
PRTOOL_API prtool_status prtool_open(const char* bundle, const prtool_options* options, prtool_encoder** encoder);

/* Frees the encoder and its graphs; NULL is allowed. */
PRTOOL_API void prtool_free(prtool_encoder* encoder);

/* What an encoder is. */
typedef struct prtool_info {
    int64_t embed_dim;      /* width of an embedding */
    int64_t image_height;   /* of prepared pixels; in mode "full" the unpruned model's, which may be larger */
    int64_t image_width;
    int64_t patches;        /* N, before any is dropped */
    int64_t default_keep;   /* patches kept by prtool_keep_default() */
    int64_t min_keep;       /* fewest and most patches that a call may keep */
    int64_t max_keep;
    int64_t locations;      /* number of places where patches are dropped or merged; 0 where the image is smaller, and nothing else */
    int64_t classes;        /* class names in the bundle; 0 where it has none */
    const char* method;     /* what shortens the sequence: "rank", "merge", or "none", for a smaller image alone */
    const char* model;      /* as open_clip names it */
    const char* engine;     /* what really runs: "ort" */
    const char* engine_version;
    const char* device;     /* human-readable: "CPU, 2 threads" */
} prtool_info;

PRTOOL_API const prtool_info* prtool_get_info(const prtool_encoder* encoder);

/* How many patches a call keeps. Make it with one of the functions below. */
typedef struct prtool_keep {
    double ratio;          /* share of all patches, above 0 and at most 1; 0 where it is not a ratio */
    int64_t count;         /* patches kept at the last location; 0 where it is not a count */
    const int64_t* counts; /* one count for each location, none above the one before, nor below half of it where patches merge; NULL where it is not a list */
    int64_t length;        /* of counts */
} prtool_keep;

PRTOOL_API prtool_keep prtool_keep_default(void);
PRTOOL_API prtool_keep prtool_keep_ratio(double ratio);
PRTOOL_API prtool_keep prtool_keep_count(int64_t count);
PRTOOL_API prtool_keep prtool_keep_counts(const int64_t* counts, int64_t length);

/* pixels: (batch, 3, image_height, image_width) float32, RGB, normalised as the bundle says. Their range is not checked: values
 * of 0 to 255 give embeddings of length 1 that mean nothing (the Python package warns of them); make pixels with prtool_prepare_*.
 * embeddings: (batch, embed_dim). */
PRTOOL_API prtool_status prtool_encode_pixels(prtool_encoder* encoder, const float* pixels, int64_t batch, prtool_keep keep, float* embeddings);

/* The same from and to the memory of the GPU of engines ort-cuda, trt and trt-rtx. The work is enqueued on
 * `stream`, a cudaStream_t of that GPU (NULL: the default stream), and the call may return before it is done. So embeddings are
 * not checked: a NaN score ranks last. Other engines return PRTOOL_CONFIG. */
PRTOOL_API prtool_status prtool_encode_device_pixels(
    prtool_encoder* encoder, const float* pixels, int64_t batch, prtool_keep keep, float* embeddings, void* stream);

/* 8-bit RGB of any size; row y begins at pixels + y * stride, and stride 0 stands for 3 * width. */
typedef struct prtool_rgb {
    const uint8_t* pixels;
    int64_t width;
    int64_t height;
    int64_t stride;
} prtool_rgb;

PRTOOL_API prtool_status prtool_encode_rgb(prtool_encoder* encoder, const prtool_rgb* images, int64_t count, prtool_keep keep, float* embeddings);

/* JPEG or PNG files; their EXIF orientation is followed. */
PRTOOL_API prtool_status prtool_encode_files(prtool_encoder* encoder, const char* const* paths, int64_t count, prtool_keep keep, float* embeddings);

/* An encoded JPEG or PNG image in memory. */
typedef struct prtool_bytes {
    const uint8_t* bytes;
    size_t size;
} prtool_bytes;

PRTOOL_API prtool_status prtool_encode_bytes(prtool_encoder* encoder, const prtool_bytes* images, int64_t count, prtool_keep keep, float* embeddings);

/* Image to the encoder's pixels, (3, image_height, image_width) float32, without running a graph. */
PRTOOL_API prtool_status prtool_prepare_file(const prtool_encoder* encoder, const char* path, float* pixels);
PRTOOL_API prtool_status prtool_prepare_bytes(const prtool_encoder* encoder, prtool_bytes image, float* pixels);
PRTOOL_API prtool_status prtool_prepare_rgb(const prtool_encoder* encoder, prtool_rgb image, float* pixels);

/* The `top` most probable classes, best first, of equal ones the lower label; `top` is clamped to the number of classes.
 * labels and probabilities: (count, min(top, classes)); probabilities are a softmax over all classes. Of embeddings, or of images. */
PRTOOL_API prtool_status prtool_classify(
    prtool_encoder* encoder, const float* embeddings, int64_t count, int64_t top, int64_t* labels, float* probabilities);
PRTOOL_API prtool_status prtool_classify_files(
    prtool_encoder* encoder, const char* const* paths, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities);
PRTOOL_API prtool_status prtool_classify_bytes(
    prtool_encoder* encoder, const prtool_bytes* images, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities);
PRTOOL_API prtool_status prtool_classify_rgb(
    prtool_encoder* encoder, const prtool_rgb* images, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities);

/* The name of a class, NULL where there is no such label. */
PRTOOL_API const char* prtool_class_name(const prtool_encoder* encoder, int64_t label);

#ifdef __cplusplus
}
#endif

#endif
