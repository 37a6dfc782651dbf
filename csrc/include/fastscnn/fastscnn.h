/* Fast-SCNN on a CPU: frames in, labels out, from one `.fscnn` file. docs/cpp.md shows its use.
 *
 * Every function that can fail returns FASTSCNN_OK or one of the codes below and, if `error` is not
 * null, writes one sentence to its `error_size` bytes (cut to fit, always ended by a NUL; empty
 * where nothing failed). No exception leaves the library and there is no global state. A network
 * that refused a call is as usable as before.
 *
 * Threads: a network may be shared by threads, which then take turns; different networks run side by
 * side. Only `fastscnn_destroy` must be the last call. Helper threads sleep between the calls.
 *
 * Structures begin with `struct_size`, to be set to their sizeof: a later version may append
 * members, and reads those only that the caller knew. */
#ifndef FASTSCNN_FASTSCNN_H
#define FASTSCNN_FASTSCNN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTSCNN_API __attribute__((visibility("default")))
#else
#define FASTSCNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when programs must be compiled anew. */
#define FASTSCNN_ABI_VERSION 1

enum fastscnn_code {
    FASTSCNN_OK = 0,
    FASTSCNN_BAD_ARGUMENT = 1, /* the sentence names the argument and what was expected */
    FASTSCNN_BAD_FILE = 2,     /* not to be read, of another version, damaged */
    FASTSCNN_NO_MEMORY = 3,
    FASTSCNN_FAILED = 4 /* anything else that the system refuses */
};

enum fastscnn_channels { FASTSCNN_RGB = 0, FASTSCNN_BGR = 1 };

typedef struct fastscnn_network fastscnn_network;

/* A frame: `height` rows of `width` pixels of three bytes. */
typedef struct fastscnn_frame {
    size_t struct_size;
    const uint8_t* pixels;
    int32_t height, width; /* 1 to 32768 */
    int64_t stride;        /* bytes from row to row, at least 3 * width */
    int32_t channels;      /* one of fastscnn_channels */
} fastscnn_frame;

typedef struct fastscnn_options {
    size_t struct_size;
    int32_t height, width; /* what the network sees, 32 to 32768 each; both 0: the working size */
    int32_t threads;       /* 1 to 1024; the result does not depend on it */
    double opacity;        /* of the colours over the frame in `overlay`, 0 to 1 */
} fastscnn_options;

/* Where results go, each dense, at the frame's height and width; what is null is not computed. */
typedef struct fastscnn_outputs {
    size_t struct_size;
    uint8_t* labels;      /* [height, width] */
    float* confidence;    /* [height, width]: the probability of each pixel's label */
    float* probabilities; /* [classes, height, width] */
    float* logits;        /* [classes, height, width] */
    uint8_t* color;       /* [height, width, 3]: the labels' colours, RGB */
    uint8_t* overlay;     /* [height, width, 3]: colours over the frame, in its channels' order */
} fastscnn_outputs;

/* FASTSCNN_ABI_VERSION of the library that runs. */
FASTSCNN_API int32_t fastscnn_abi_version(void);

/* Reads a `.fscnn` file, or its bytes, which are not needed afterwards. `*network` is null where it
 * fails. */
FASTSCNN_API int32_t fastscnn_create_from_file(const char* path, fastscnn_network** network,
                                               char* error, size_t error_size);
FASTSCNN_API int32_t fastscnn_create_from_memory(const void* data, size_t size,
                                                 fastscnn_network** network, char* error,
                                                 size_t error_size);
/* Null is allowed. */
FASTSCNN_API void fastscnn_destroy(fastscnn_network* network);

/* `options` null: the working size, one thread, opacity 0.5. */
FASTSCNN_API int32_t fastscnn_segment(fastscnn_network* network, const fastscnn_frame* frame,
                                      const fastscnn_options* options,
                                      const fastscnn_outputs* outputs, char* error,
                                      size_t error_size);

/* What the network sees of a frame of that size where `options` does not say: the checkpoint's
 * working size at the frame's aspect, or the frame's own size. */
FASTSCNN_API int32_t fastscnn_working_size(const fastscnn_network* network, int32_t frame_height,
                                           int32_t frame_width, int32_t* height, int32_t* width,
                                           char* error, size_t error_size);

/* 0 where `network` is null. */
FASTSCNN_API int32_t fastscnn_class_count(const fastscnn_network* network);
/* UTF-8, as long as the network lives; empty if unknown, null where there is no such class. */
FASTSCNN_API const char* fastscnn_class_name(const fastscnn_network* network, int32_t label);
/* Its three bytes RGB, as long as the network lives; null where there is no such class. */
FASTSCNN_API const uint8_t* fastscnn_class_color(const fastscnn_network* network, int32_t label);

/* "float32", "bfloat16" or "int8": what most convolutions multiply on this machine, which may not be
 * faster in what the file asks for. Null where `network` is null. */
FASTSCNN_API const char* fastscnn_precision(const fastscnn_network* network);

/* Bytes held besides the weights, for the two sizes seen last; 0 where `network` is null. */
FASTSCNN_API int64_t fastscnn_workspace_bytes(fastscnn_network* network);

#ifdef __cplusplus
}
#endif
#endif
