/* vqm.h, vqm.c: a complete decoder of the vqm format (SPEC.md, version 1.2) in C99. Two files, to be copied into a
   project. They need zstd, or -DVQM_NO_ZSTD, and an arena: no other memory is taken.

       cc -std=c99 -O2 -ffp-contract=off -c vqm.c        link with -lzstd

   All tensors of a file, one after another. The file is in memory here; vqm_stream reads a pipe:

       vqm_source source = vqm_memory(data, n_bytes);
       const vqm_tensor *tensor;
       vqm *file;
       vqm_status status = vqm_open(&file, &source, NULL, arena, arena_nbytes);
       while (status == VQM_OK && (status = vqm_next(file, &tensor)) == VQM_OK)
           status = vqm_decode(file, place_for(tensor->name), tensor->nbytes);
       if (status != VQM_END)
           stop(vqm_word(status));                   // "checksum", "truncated", ...

   One tensor, or some of its rows, by the index. The file is in memory, or can be sought:

       status = vqm_open_index(&file, &source, NULL, arena, arena_nbytes);
       status = vqm_find(file, "encoder.weight", &tensor);
       status = vqm_rows(file, 100, 10, out, out_nbytes);        // rows 100 to 109 of the first axis

   How large the arena has to be for a file, and how large its tensors are:

       vqm_needs needs;
       status = vqm_need(&source, arena, arena_nbytes, &needs);  // VQM_MEMORY: try again with needs.scratch bytes

   Every rule that SPEC.md has for a reader is tested before a value is handed out. Values are the same to the bit on
   every machine. They must not be compiled with -ffast-math, and the processor must not flush subnormal numbers to 0. */

#ifndef VQM_H
#define VQM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What became of a call. From VQM_TRUNCATED to VQM_FORMAT: the file is refused, the classes of SPEC 1. */
typedef enum {
    VQM_OK,
    VQM_END, /* there is no further tensor, or no further block */
    VQM_TRUNCATED,
    VQM_CHECKSUM,
    VQM_LIMIT, /* of SPEC 14, or one of vqm_options */
    VQM_UNSUPPORTED,
    VQM_FORMAT,
    VQM_NEEDS_ZSTD, /* compiled with VQM_NO_ZSTD, and the file has a zstd frame */
    VQM_MEMORY,     /* the arena is too small */
    VQM_SOURCE,     /* the source could not be read */
    VQM_USAGE       /* the call is wrong: a buffer too small, rows that do not exist, a tensor decoded twice in a stream */
} vqm_status;

/* SPEC 7.1: their ids. */
typedef enum {
    VQM_BOOL, VQM_U8, VQM_I8, VQM_U16, VQM_I16, VQM_U32, VQM_I32, VQM_U64, VQM_I64, VQM_F16, VQM_BF16, VQM_F32,
    VQM_F64, VQM_C64, VQM_C128, VQM_F8_E4M3FN, VQM_F8_E5M2, VQM_F8_E4M3FNUZ, VQM_F8_E5M2FNUZ, VQM_F8_E8M0FNU, VQM_U4,
    VQM_I4, VQM_F4_E2M1FN, VQM_N_DTYPES
} vqm_dtype;

/* Where the bytes of a file come from. */
typedef struct {
    const uint8_t *memory; /* the whole file, or NULL: what is stored plain is then not copied to the arena */
    uint64_t nbytes;       /* the size of the file; only vqm_open_index asks for it */
    /* Puts 1 to n bytes at `to` and returns how many; 0 at the end of the file; (size_t)-1 if it fails. */
    size_t (*read)(void *user, void *to, size_t n);
    /* Moves to an offset from the start of the file and returns 0; NULL for a pipe. */
    int (*seek)(void *user, uint64_t offset);
    void *user;
} vqm_source;

vqm_source vqm_memory(const void *data, size_t n_bytes);
vqm_source vqm_stream(size_t (*read)(void *user, void *to, size_t n), void *user);

/* Bounds of the caller (LIM-002), 0 for none; zeros, or NULL in place of it, by default. */
typedef struct {
    uint64_t max_tensor_nbytes; /* decoded bytes of a tensor */
    uint64_t max_total_nbytes;  /* those, and what the arena holds of BOOK and FREQ chunks and of resident sections */
    int test_digest;            /* vqm_open: test the SHA-256 of the file too (IDX-002) */
} vqm_options;

typedef struct vqm_tensor {
    const char *name; /* UTF-8, followed by a byte 0 */
    size_t name_nbytes;
    vqm_dtype dtype;
    unsigned rank;
    const uint64_t *dims;
    uint64_t nbytes;                 /* decoded: elements in C order, little-endian, 4-bit ones two to a byte */
    const struct vqm_tensor *target; /* the tensor that this is another name of, or NULL */
    uint32_t number;                 /* in the file, from 0 */
    uint32_t layer;                  /* number of its layer */
} vqm_tensor;

typedef struct vqm vqm;

/* Begin to read a file from its start, or by its index. *file lies in the arena. What vqm_tensor and other structures
   point to lives as long as the arena, apart from what is said to end sooner. A call that fails in a sequential read
   makes all later ones fail alike. */
vqm_status vqm_open(vqm **file, const vqm_source *source, const vqm_options *options, void *arena, size_t arena_nbytes);
vqm_status vqm_open_index(vqm **file, const vqm_source *source, const vqm_options *options, void *arena,
                          size_t arena_nbytes);

/* The next tensor in file order. VQM_END comes after everything up to the last byte of the file has been tested. In a
   sequential read the sections of a tensor that was not decoded are passed over; only their CRC-32 is tested. */
vqm_status vqm_next(vqm *file, const vqm_tensor **tensor);

/* By the index: the tensor of a name, or VQM_END. Then vqm_next goes on behind it. */
vqm_status vqm_find(vqm *file, const char *name, const vqm_tensor **tensor);

/* Decode the tensor of the last vqm_next or vqm_find: all of it, or `count` elements of its first axis. In a sequential
   read this is possible once, and an alias has to be copied from its target. */
vqm_status vqm_decode(vqm *file, void *out, uint64_t out_nbytes);
vqm_status vqm_rows(vqm *file, uint64_t first, uint64_t count, void *out, uint64_t out_nbytes);

/* Decode its next block; VQM_END after the last. `values` end with the next call: n_rows rows of n_columns words of the
   dtype (of the real and imaginary parts of a complex tensor, unless is_whole), where `row` and `column` are those of the
   first in the matrix of SPEC 7.2. Their places follow from vqm_place; in_order says that they follow each other. */
typedef struct {
    uint64_t row, column;
    uint32_t n_rows, n_columns;
    const uint8_t *values;
    uint64_t nbytes;
    int in_order;  /* the places of the words are those of the first, then one more each */
    int is_whole;  /* a word is an element, also of a complex tensor */
    unsigned bits; /* of a word */
} vqm_block;

vqm_status vqm_next_block(vqm *file, vqm_block *block);

/* Place of the word at row i, column j of a block: its number in the tensor, in C order. */
uint64_t vqm_place(const vqm *file, const vqm_block *block, uint32_t i, uint32_t j);

/* What META holds; it ends with the next vqm_next, vqm_find or decoding. `metadata` are bytes for vqm_value_at. */
typedef struct {
    const char *generator; /* not followed by a byte 0 */
    size_t generator_nbytes;
    const uint8_t *metadata;
} vqm_meta;

vqm_meta vqm_metadata(const vqm *file);

/* Name of the layer of the current tensor: UTF-8, not followed by a byte 0. It ends with the next call. */
vqm_status vqm_layer_name(vqm *file, const char **name, size_t *n_bytes);

/* One value of the metadata (SPEC 5). A map is n pairs of values, an array n values, which follow. */
typedef enum { VQM_NIL, VQM_FALSE, VQM_TRUE, VQM_INTEGER, VQM_NEGATIVE, VQM_STRING, VQM_BIN, VQM_ARRAY, VQM_MAP } vqm_kind;
typedef struct {
    vqm_kind kind;
    uint64_t n;           /* the integer (a negative one in two's complement), or the number of bytes, values or pairs */
    const uint8_t *bytes; /* of a string or bin */
} vqm_value;

const uint8_t *vqm_value_at(const uint8_t *at, vqm_value *value); /* returns where the next one is */

/* What a file needs, as its metadata tells; values are not decoded for it. Sizes in bytes. */
typedef struct {
    uint64_t arena;          /* enough for vqm_open or vqm_open_index, vqm_decode and all else but the next line */
    uint64_t arena_by_block; /* enough for vqm_next_block and vqm_rows too */
    uint64_t largest_tensor, largest_layer, largest_block; /* decoded */
    uint64_t scratch; /* the arena that vqm_need itself needs for this file, as far as it has read */
} vqm_needs;

vqm_status vqm_need(const vqm_source *source, void *arena, size_t arena_nbytes, vqm_needs *needs);

/* The word of SPEC 1 for a refusal ("truncated", "checksum", "limit", "unsupported", "format"); VQM_NEEDS_ZSTD is
   "unsupported", VQM_MEMORY "limit". "source" and "usage" are no fault of the file. */
const char *vqm_word(vqm_status status);

/* The rule of SPEC.md that was broken, such as "SEC-001", and where reading stood. */
const char *vqm_rule(const vqm *file);
uint64_t vqm_offset(const vqm *file);

/* "f32" for VQM_F32 and so on. */
const char *vqm_dtype_name(vqm_dtype dtype);

/* SHA-256, for the digest of a file and for whoever wants to compare what was decoded. */
typedef struct {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64];
} vqm_sha256;

void vqm_sha256_start(vqm_sha256 *sha);
void vqm_sha256_add(vqm_sha256 *sha, const void *data, size_t n_bytes);
void vqm_sha256_end(const vqm_sha256 *sha, uint8_t digest[32]); /* may be followed by more */

#ifdef __cplusplus
}
#endif

#endif
