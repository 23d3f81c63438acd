/* A decoder of the vqm format, to be read beside SPEC.md: its order, its section numbers, its rules. vqm.h says how it is
   used. First come the structures, then reading a file (SPEC 15), then what it meets there from the outside in (SPEC 2 to
   13), and last the primitives: arena, source, checksums, small floating-point numbers. */

#include "vqm.h"

#include <float.h>
#include <limits.h>
#include <string.h>

#ifndef VQM_NO_ZSTD
#define ZSTD_STATIC_LINKING_ONLY /* for a decompressor in memory that we give */
#include <zstd.h>
#endif

/* CNV-006: a product is rounded before it is added. GCC knows no such pragma: -std=c99 or -ffp-contract=off tells it.
   Sums and products of binary32 that are computed in binary64 or wider and then rounded are right all the same. */
#if defined(__clang__) || !defined(__GNUC__)
#pragma STDC FP_CONTRACT OFF
#endif
#ifdef __FAST_MATH__
#error "vqm.c must not be compiled with -ffast-math"
#endif

/* For tests: AddressSanitizer then sees a step out of a piece of the arena, too. The arena is not usable afterwards. */
#ifdef VQM_TEST_ARENA
#include <sanitizer/asan_interface.h>
#define HIDE(at, n) ASAN_POISON_MEMORY_REGION((at), (n))
#define REVEAL(at, n) ASAN_UNPOISON_MEMORY_REGION((at), (n))
#else
#define HIDE(at, n) ((void)(at), (void)(n))
#define REVEAL(at, n) ((void)(at), (void)(n))
#endif

typedef char floats_are_ieee_754[FLT_RADIX == 2 && FLT_MANT_DIG == 24 && DBL_MANT_DIG == 53 ? 1 : -1];
typedef char sizes_have_32_bits[sizeof(size_t) >= 4 && sizeof(int) >= 4 && CHAR_BIT == 8 ? 1 : -1];

/* SPEC 14 */
#define MAX_META (1u << 24)
#define MAX_INDEX_META (1u << 28)
#define MAX_DEPTH 16
#define MAX_VALUES (1u << 20)
#define MAX_SECTIONS (1u << 22)
#define MAX_CHUNKS (1u << 20)
#define MAX_TENSORS (1u << 20)
#define MAX_NAME 1024
#define MAX_AXES 32
#define MAX_ELEMENTS ((UINT64_C(1) << 58) - 1)
#define MAX_STAGES 16
#define MAX_ENTRIES 65536
#define MAX_DIM 4096
#define MAX_GROUPS (1u << 20)
#define MAX_RANK 65536
#define MAX_FACTOR (1u << 24)
#define MAX_RESIDENT (1u << 28)
#define MAX_FREQ (1u << 22)
#define MAX_TRANSFORM 128
#define MAX_BLOCK (1u << 22)
#define MAX_WINDOW (1u << 23)
#define SMALL_RESIDENTS (1u << 20) /* LIM-002: so many bytes do not count */

/* A table of codes has a guide of 2^GUIDE_BITS entries, from which the code of a slot is looked for (SPEC 12.3). */
#ifndef VQM_GUIDE_BITS
#define VQM_GUIDE_BITS 7
#endif

#define TRY(call)                         \
    do {                                  \
        vqm_status tried = (call);        \
        if (tried != VQM_OK) return tried; \
    } while (0)

/* Refuse the file unless `holds`; `rule` is an id of SPEC.md, `status` the class of the refusal. */
#define NEED(holds, status, rule)                        \
    do {                                                 \
        if (!(holds)) return refuse(f, (status), (rule)); \
    } while (0)

/* ---- Structures ---- */

/* SPEC 6 and 13: a chunk of the file, and what a BOOK or FREQ chunk says. */
typedef struct chunk {
    struct chunk *next;
    uint64_t offset, nbytes; /* of the file, from its type to the end of its data */
    uint8_t type[4];
    uint32_t place;  /* among the chunks of the file */
    uint32_t number; /* among those of its type */
    /* BOOK: dim, entries, groups, dtype, values. FREQ: precision, entries, tables */
    uint32_t dim, entries, groups, precision, tables;
    uint8_t dtype;
    uint8_t is_known; /* its metadata has been read */
    uint8_t is_held;  /* its section has been read */
    const uint8_t *values;
    uint16_t *starts; /* (tables, entries + 1): the sums of the frequencies below each code, and 2^precision */
    uint16_t *guides; /* (tables, 2^guide_bits + 1): the code of the first slot of each part of the slots; the last code */
    int guide_bits;
} chunk;

typedef struct {
    chunk **items;
    uint32_t n, room;
} chunk_list;

/* A tensor in the list of the file. Names are in a trie by the bits of `hash`, which a file cannot choose. */
typedef struct entry {
    vqm_tensor tensor;
    chunk *chunk;
    struct entry *next, *child[2];
} entry;

/* SPEC 9.2: values of a dtype, `size` for each group of rows and columns. */
typedef struct {
    uint8_t dtype;
    uint64_t rows, columns; /* of a group */
    uint64_t n_columns, n_groups, nbytes;
    const uint8_t *values;
} grid;

/* SPEC 10 */
typedef struct {
    uint32_t entries;
    unsigned width, n_planes;
    uint32_t base[3], per_byte[3], limit[3]; /* limit: base^per_byte */
} codes;

typedef struct {
    const codes *form;
    const uint8_t *at[3];
    uint32_t byte[3], left[3]; /* digits of the current byte */
    uint32_t bits;             /* dense: read and not yet used */
    unsigned n_bits;
    int is_bad;
} code_reader;

/* SPEC 13 and MET-009 */
typedef struct {
    const uint8_t *bytes;
    unsigned width;
    uint64_t n;
} column;

/* SPEC 8 */
typedef struct {
    unsigned split;
    int is_sparse;
    column counts;
} raw_stage;

/* SPEC 9 */
typedef struct {
    uint32_t dim, entries, source;
    int32_t zero;
    int has_scale;
    grid table, scale;
    chunk *book;
    int is_signed, exponent_bits, fraction_bits, exponent; /* source 4 */
    codes codes;
} codebook_stage;

/* SPEC 11 */
typedef struct {
    uint32_t rank;
    codes left, right;
    grid row_scale, column_scale;
    int16_t *v; /* (rank, C) */
} low_rank_stage;

/* SPEC 12 */
typedef struct {
    uint32_t source, n_books, feedback, forward, classes, first, size;
    int32_t zero;
    int has_scale;
    grid table, scale;
    chunk *freq;
    uint64_t tile_rows, tile_columns;
    const uint8_t *matrix, *row_classes, *column_classes;
} trellis_stage;

typedef struct {
    uint32_t id;
    union {
        raw_stage raw;
        codebook_stage codebook;
        low_rank_stage low_rank;
        trellis_stage trellis;
    } as;
} stage;

/* SPEC 7: a record that has been checked. */
typedef struct {
    const uint8_t *name, *target; /* target: of an alias, else NULL */
    size_t name_nbytes, target_nbytes;
    uint8_t dtype, bits;
    int is_raw, is_complex; /* complex: the view has an axis of real and imaginary part */
    unsigned rank;
    uint64_t dims[MAX_AXES + 1];
    uint64_t n_elements, nbytes;
    /* 7.2. Axes of size 1 are left out, and those that follow each other as in the tensor are one. */
    struct {
        uint64_t size, stride;
    } axes[MAX_AXES + 1];
    unsigned n_row_axes, n_axes;
    int rows_have_first, is_plain; /* the first axis is one of the rows; the view is the tensor in C order */
    uint64_t n_rows, n_columns, block_rows, block_columns, n_blocks;
    uint32_t order;
    uint32_t *row_order, *column_order;
    unsigned n_stages;
    stage *stages;
    uint64_t resident_nbytes, n_residents, per_block, n_sections;
} plan;

/* What has been read of a chunk before its data. */
typedef struct {
    chunk *chunk;
    const uint8_t *meta, *table;
    size_t meta_nbytes;
    uint32_t n_sections, section; /* the next section */
    uint64_t data_offset;         /* of the first section */
} body;

/* How much of the arena is in use, to go back to. */
typedef struct {
    size_t high;
    uint64_t pretended;
} mark;

struct vqm {
    vqm_source source;
    vqm_options options;
    uint8_t *arena;
    size_t arena_nbytes, low, high; /* taken at both ends: what stays, and what is given back */
    /* vqm_need: memory for content is counted, not taken */
    int measures, pretends, values_may_be_out;
    uint64_t pretended_low, pretended_high, values_nbytes, most, most_by_block, most_of_others, most_of_shared;
    int by_index, must_seek;
    uint64_t offset;
    uint8_t header[16];
    vqm_sha256 sha, sha_before;
    vqm_status status;
    const char *rule;
    chunk *first_chunk, *last_chunk, index_chunk; /* by the index, INDX is not in the list */
    chunk_list books, freqs;
    int has_shared; /* by the index: their records have been read */
    uint32_t n_chunks, n_layers, n_tensors;
    entry *root, *first, *last;
    uint64_t held; /* LIM-002: bytes of BOOK and FREQ sections */
    vqm_meta meta;
    uint32_t meta_nbytes; /* of META, and their hash */
    uint8_t meta_digest[32];
    body body;
    const uint8_t *layer_name;
    size_t layer_name_nbytes;
    /* The tensors of the chunk that are to come: how many, their records, the first one, its first section */
    uint32_t n_records, next_section;
    const uint8_t *records;
    entry *next;
    mark chunk_mark; /* gives back what is not of the chunk but of one of its tensors */
    entry *current;
    int is_planned, is_loaded; /* `plan` is of the current tensor, and its resident sections have been read */
    plan plan;
    uint32_t first_section; /* of the current tensor */
    uint64_t row, column;   /* of the next block */
    mark block_mark;        /* gives back what a block took */
    uint64_t wanted;        /* the most that was asked of the arena */
};

enum { HIGH, LOW };

static vqm_status refuse(vqm *f, vqm_status status, const char *rule);
/* SPEC 15 */
static vqm_status take_footer(vqm *f);
static vqm_status load_shared(vqm *f);
/* SPEC 2 to 6 */
static vqm_status take_header(vqm *f, const uint8_t *header);
static vqm_status open_chunk(vqm *f, chunk *c);
static vqm_status section(vqm *f, uint64_t plain, int end, uint8_t *to, const uint8_t **bytes);
static vqm_status payload_section(vqm *f, uint64_t least, uint64_t most, const uint8_t **bytes, size_t *n);
static vqm_status pass_section(vqm *f);
static vqm_status decompress(vqm *f, const uint8_t *frame, size_t n, uint8_t *plain, size_t n_plain);
static vqm_status check_meta(vqm *f, const uint8_t *meta, size_t n);
static vqm_status fields(vqm *f, const uint8_t **m, uint64_t n);
static vqm_status value_of(vqm *f, const uint8_t **m, vqm_kind kind, vqm_value *v);
static vqm_status number(vqm *f, const uint8_t **m, const char *rule, uint64_t least, uint64_t most, vqm_status over,
                         uint64_t *n);
static vqm_status small(vqm *f, const uint8_t **m, const char *rule, uint32_t least, uint32_t most, vqm_status over,
                        uint32_t *n);
static vqm_status whole(vqm *f, const uint8_t **m, const char *rule, int32_t least, int32_t most, int32_t *n);
static vqm_status float_dtype(vqm *f, const uint8_t **m, uint8_t *dtype);
static vqm_status first_id(vqm *f, const uint8_t *m, uint64_t *id);
static int is_nil(const uint8_t **m);
static vqm_status take_meta(vqm *f, const uint8_t *m);
static vqm_status take_book(vqm *f);
static vqm_status take_freq(vqm *f);
static vqm_status load_book(vqm *f, chunk *c);
static vqm_status load_freq(vqm *f, chunk *c);
static vqm_status take_layer(vqm *f);
/* SPEC 7 */
static vqm_status plan_tensor(vqm *f, const uint8_t **m);
static vqm_status load_residents(vqm *f);
static vqm_status block_values(vqm *f, const vqm_block *block, uint8_t *to, const uint8_t **values);
static void block_at(const vqm *f, uint64_t row, uint64_t column, vqm_block *block);
static void next_block(vqm *f, const vqm_block *block);
static uint64_t row_place(const plan *p, uint64_t row);
static uint64_t column_place(const plan *p, uint64_t column);
/* SPEC 8 to 12 */
static vqm_status plan_raw(vqm *f, const uint8_t **m, raw_stage *s, int is_sparse);
static vqm_status raw_block(vqm *f, const vqm_block *block, uint8_t *to, const uint8_t **values);
static vqm_status plan_codebook(vqm *f, const uint8_t **m, codebook_stage *s);
static vqm_status load_codebook(vqm *f, codebook_stage *s, float *bound);
static vqm_status codebook_block(vqm *f, const codebook_stage *s, const vqm_block *block, int adds, uint8_t *values);
static vqm_status plan_codes(vqm *f, const uint8_t **m, uint32_t entries, codes *c);
static vqm_status read_codes(vqm *f, const codes *c, uint64_t n, code_reader *r);
static uint32_t next_code(code_reader *r);
static vqm_status codes_are_right(vqm *f, const code_reader *r);
static vqm_status plan_low_rank(vqm *f, const uint8_t **m, low_rank_stage *s);
static vqm_status load_low_rank(vqm *f, low_rank_stage *s, float *bound);
static vqm_status low_rank_block(vqm *f, const low_rank_stage *s, const vqm_block *block, int adds, uint8_t *values);
static vqm_status plan_trellis(vqm *f, const uint8_t **m, trellis_stage *s);
static vqm_status load_trellis(vqm *f, trellis_stage *s, float *bound);
static vqm_status trellis_block(vqm *f, const trellis_stage *s, const vqm_block *block, int adds, uint8_t *values);
/* SPEC 13 */
static vqm_status open_column(vqm *f, const uint8_t **m, uint64_t n, column *c);
static uint64_t column_at(const column *c, uint64_t i);
static vqm_status check_index(vqm *f, const uint8_t *m);
static vqm_status take_index(vqm *f, const uint8_t *m);
/* Primitives */
static vqm_status add_chunk(vqm *f, chunk **added);
static vqm_status add_to_list(vqm *f, chunk_list *list, chunk *c);
static entry **find_entry(vqm *f, const uint8_t *name, size_t n);
static vqm_status add_entry(vqm *f, const uint8_t *name, size_t name_nbytes, unsigned rank, entry **added);
static vqm_status take(vqm *f, int end, uint64_t n, uint8_t **at);
static mark mark_of(const vqm *f);
static void give_back(vqm *f, mark m);
static void give_back_all(vqm *f);
static void note_most(vqm *f);
static vqm_status get(vqm *f, void *to, uint64_t n);
static vqm_status get_or_point(vqm *f, uint64_t n, int end, uint8_t *to, const uint8_t **bytes);
static vqm_status pass(vqm *f, uint64_t n, uint32_t *crc, int *is_zero);
static vqm_status go_to(vqm *f, uint64_t offset);
static uint32_t crc_of(uint32_t crc, const uint8_t *bytes, size_t n);
static uint32_t u16_at(const uint8_t *p);
static uint32_t u32_at(const uint8_t *p);
static uint64_t u64_at(const uint8_t *p);
static void put16(uint8_t *p, uint32_t n);
static void put32(uint8_t *p, uint32_t n);
static float float_of(uint32_t bits);
static uint32_t bits_of(float value);
static float value_at(unsigned dtype, const uint8_t *bytes, uint64_t i);
static uint64_t ceil_div(uint64_t a, uint64_t b);
static uint64_t capped_product(uint64_t a, uint64_t b);

static int is_finite(float x) {
    return (bits_of(x) & 0x7F800000) != 0x7F800000;
}

static int is_type(const uint8_t *type, const char *name) {
    return !memcmp(type, name, 4);
}

static uint64_t max_u64(uint64_t a, uint64_t b) {
    return a < b ? b : a;
}

static float max_of(float a, float b) {
    return a < b ? b : a;
}

/* In a fuzzer's build every CRC-32 is right: it would never get beyond them. */
static int crc_is(uint32_t found, uint32_t stored) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    (void)found, (void)stored;
    return 1;
#else
    return found == stored;
#endif
}

static vqm_status refuse(vqm *f, vqm_status status, const char *rule) {
    f->rule = rule;
    return status;
}

/* ---- SPEC 15.1 and 15.2: reading ---- */

static vqm_status create(vqm **file, const vqm_source *source, const vqm_options *options, void *arena, size_t n) {
    const size_t skew = (size_t)(-(uintptr_t)arena & 7);
    vqm *f;
    *file = NULL;
    if (!arena || n < sizeof(vqm) + 16) return VQM_MEMORY;
    f = (vqm *)(void *)((uint8_t *)arena + skew);
    REVEAL(arena, n);
    memset(f, 0, sizeof *f);
    f->arena = (uint8_t *)f;
    f->arena_nbytes = (n - skew) & ~(size_t)7;
    f->low = (sizeof *f + 7) & ~(size_t)7;
    HIDE(f->arena + f->low, f->arena_nbytes - f->low < 1 << 16 ? f->arena_nbytes - f->low : 1 << 16);
    f->source = *source;
    if (options) f->options = *options;
    f->rule = "";
    *file = f;
    return VQM_OK;
}

static vqm_status open_stream(vqm *f) {
    chunk *c;
    vqm_sha256_start(&f->sha);
    TRY(get(f, f->header, 16));
    TRY(take_header(f, f->header));
    TRY(add_chunk(f, &c));
    TRY(open_chunk(f, c)); /* FIL-001: it is META */
    c->nbytes = f->offset - c->offset;
    return take_meta(f, f->body.meta);
}

vqm_status vqm_open(vqm **file, const vqm_source *source, const vqm_options *options, void *arena, size_t arena_nbytes) {
    TRY(create(file, source, options, arena, arena_nbytes));
    return (*file)->status = open_stream(*file);
}

/* 15.1, steps 3 to 19: go on to the next LAYR chunk, or to the end. */
static vqm_status next_layer(vqm *f) {
    for (;;) {
        chunk *c;
        give_back_all(f);
        TRY(add_chunk(f, &c));
        TRY(open_chunk(f, c));
        if (is_type(c->type, "LAYR")) {
            TRY(take_layer(f));
            return VQM_OK;
        }
        if (is_type(c->type, "INDX")) {
            TRY(check_index(f, f->body.meta));
            TRY(take_footer(f));
            return VQM_END;
        }
        f->most_of_others = max_u64(f->most_of_others, f->most);
        f->most = 0;
        if (is_type(c->type, "BOOK")) {
            TRY(take_book(f));
            f->pretends = f->measures;
            TRY(load_book(f, c));
        } else if (is_type(c->type, "FREQ")) {
            TRY(take_freq(f));
            f->pretends = f->measures;
            TRY(load_freq(f, c));
        } else {
            while (f->body.section < f->body.n_sections) TRY(pass_section(f));
        }
        f->pretends = 0;
        f->most_of_shared = max_u64(f->most_of_shared, f->most); /* by the index it comes on top of a tensor's */
        c->nbytes = f->offset - c->offset; /* FIL-002 */
    }
}

/* Make `plan` that of the next tensor of the chunk. */
static vqm_status next_record(vqm *f) {
    give_back(f, f->chunk_mark);
    f->is_planned = f->is_loaded = 0;
    TRY(plan_tensor(f, &f->records));
    f->first_section = f->next_section;
    f->next_section += (uint32_t)f->plan.n_sections; /* LYR-002: no more than the chunk has */
    f->n_records--;
    f->current = f->next;
    f->next = f->next->next;
    return VQM_OK;
}

/* LIM-002, which REA-004 allows to be tested here. */
static vqm_status check_budget(vqm *f) {
    const uint64_t residents = f->plan.resident_nbytes > SMALL_RESIDENTS ? f->plan.resident_nbytes : 0;
    const uint64_t tensor = f->plan.nbytes, total = f->held + residents + tensor;
    NEED(!f->options.max_tensor_nbytes || tensor <= f->options.max_tensor_nbytes, VQM_LIMIT, "LIM-002");
    NEED(!f->options.max_total_nbytes || total <= f->options.max_total_nbytes, VQM_LIMIT, "LIM-002");
    return VQM_OK;
}

static vqm_status next_in_stream(vqm *f) {
    if (f->current) { /* what was not read of it */
        while (f->body.section < f->next_section) TRY(pass_section(f));
        if (!f->n_records) f->body.chunk->nbytes = f->offset - f->body.chunk->offset;
    }
    if (!f->n_records) TRY(next_layer(f));
    TRY(next_record(f));
    TRY(check_budget(f));
    f->is_planned = 1;
    return VQM_OK;
}

vqm_status vqm_next(vqm *f, const vqm_tensor **tensor) {
    *tensor = NULL;
    if (f->by_index) {
        f->current = f->current ? f->current->next : f->first;
        f->is_planned = f->is_loaded = 0;
        if (!f->current) return VQM_END;
    } else {
        TRY(f->status);
        TRY(f->status = next_in_stream(f));
    }
    *tensor = &f->current->tensor;
    return VQM_OK;
}

/* 15.2, steps 1 to 4 */
static vqm_status open_index(vqm *f) {
    uint8_t footer[28], *first = f->header;
    chunk *const c = &f->index_chunk;
    uint64_t index_offset;
    NEED(f->source.nbytes >= 16 + 28, VQM_TRUNCATED, "REA-001");
    TRY(go_to(f, f->source.nbytes - 28));
    TRY(get(f, footer, 28));
    TRY(go_to(f, 0));
    TRY(get(f, first, 16));
    if (!crc_is(crc_of(0, footer, 24), u32_at(footer + 24))) {
        TRY(take_header(f, first));
        return refuse(f, memcmp(footer, first, 8) ? VQM_TRUNCATED : VQM_CHECKSUM, "FTR-002");
    }
    TRY(take_header(f, footer));
    NEED(!memcmp(footer, first, 16), VQM_FORMAT, "FTR-002");
    index_offset = u64_at(footer + 16);
    NEED(index_offset >= 16 && index_offset < f->source.nbytes - 28, VQM_FORMAT, "FTR-003");
    TRY(go_to(f, index_offset));
    c->place = 1;
    TRY(open_chunk(f, c));
    NEED(is_type(c->type, "INDX") && f->offset == f->source.nbytes - 28, VQM_FORMAT, "FTR-003");
    TRY(take_index(f, f->body.meta));
    if (f->meta.metadata) return VQM_OK;
    give_back_all(f);
    TRY(go_to(f, 16));
    TRY(open_chunk(f, f->first_chunk));
    NEED(f->body.meta_nbytes > 65536, VQM_FORMAT, "IDX-001");
    return take_meta(f, f->body.meta);
}

vqm_status vqm_open_index(vqm **file, const vqm_source *source, const vqm_options *options, void *arena,
                          size_t arena_nbytes) {
    if (!source->memory && !source->seek) return VQM_USAGE;
    TRY(create(file, source, options, arena, arena_nbytes));
    (*file)->by_index = 1;
    return open_index(*file);
}

vqm_status vqm_find(vqm *f, const char *name, const vqm_tensor **tensor) {
    entry *const *found = find_entry(f, (const uint8_t *)name, strlen(name));
    *tensor = NULL;
    if (!f->by_index) return VQM_USAGE;
    if (!*found) return VQM_END;
    f->current = *found;
    f->is_planned = f->is_loaded = 0;
    *tensor = &f->current->tensor;
    return VQM_OK;
}

/* 15.2, step 5: the record of the current tensor, in its chunk. */
static vqm_status plan_by_index(vqm *f, entry *wanted) {
    if (f->body.chunk != wanted->chunk || f->next == NULL || f->next->tensor.number > wanted->tensor.number) {
        f->body.chunk = NULL;
        give_back_all(f);
        TRY(load_shared(f));
        TRY(go_to(f, wanted->chunk->offset));
        TRY(open_chunk(f, wanted->chunk));
        TRY(take_layer(f));
    }
    do TRY(next_record(f));
    while (f->current != wanted);
    TRY(check_budget(f));
    if (f->body.section > f->first_section) {
        f->body.section = 0;
        TRY(go_to(f, f->body.data_offset));
    }
    while (f->body.section < f->first_section) TRY(pass_section(f)); /* step 6 */
    return VQM_OK;
}

/* Make ready to decode the current tensor: an alias's target by the index. */
static vqm_status start(vqm *f) {
    if (!f->current) return VQM_USAGE;
    if (!f->is_planned) {
        entry *const asked = f->current;
        entry *const wanted = asked->tensor.target ? (entry *)asked->tensor.target : asked; /* its first member */
        vqm_status status;
        if (!f->by_index) return VQM_USAGE;
        status = plan_by_index(f, wanted);
        f->current = asked;
        TRY(status);
        f->is_planned = 1;
    }
    if (f->plan.target) return VQM_USAGE;
    if (!f->is_loaded) TRY(load_residents(f));
    f->is_loaded = 1;
    return VQM_OK;
}

/* Go to the first block. In a stream it can be read once. */
static vqm_status rewind_blocks(vqm *f) {
    const uint64_t payloads = f->first_section + f->plan.n_residents;
    f->row = f->column = 0;
    if (f->body.section == payloads) return VQM_OK;
    if (!f->by_index) return VQM_USAGE;
    f->body.section = 0;
    TRY(go_to(f, f->body.data_offset));
    while (f->body.section < payloads) TRY(pass_section(f));
    return VQM_OK;
}

static vqm_status pass_block(vqm *f) {
    uint64_t i;
    for (i = 0; i < f->plan.per_block; i++) TRY(pass_section(f));
    return VQM_OK;
}

/* Whether a block has words at places from `low` to `high`, which are whole steps along the first axis. */
static int is_wanted(const plan *p, const vqm_block *b, uint64_t low, uint64_t high) {
    const uint64_t first = row_place(p, b->row) + column_place(p, b->column);
    const uint64_t step = p->dims[0] ? p->n_elements / p->dims[0] : 1;
    const uint64_t inner = step << p->is_complex;
    uint32_t i;
    if (low == 0 && high == p->n_elements << p->is_complex) return 1;
    if (p->is_plain) return first < high && first + (uint64_t)b->n_rows * b->n_columns > low;
    if (p->rows_have_first) {
        for (i = 0; i < b->n_rows; i++) {
            const uint64_t place = row_place(p, b->row + i) / inner * inner;
            if (place >= low && place < high) return 1;
        }
    } else {
        for (i = 0; i < b->n_columns; i++) {
            const uint64_t place = column_place(p, b->column + i) / inner * inner;
            if (place >= low && place < high) return 1;
        }
    }
    return 0;
}

static void put_word(uint8_t *to, const uint8_t *from, unsigned n_bytes) {
    switch (n_bytes) {
        case 1: *to = *from; break;
        case 2: memcpy(to, from, 2); break;
        case 4: memcpy(to, from, 4); break;
        case 8: memcpy(to, from, 8); break;
        default: memcpy(to, from, 16);
    }
}

/* 7.2: the words of a block at their places, of which out[0] is `low`. */
static void put_block(const plan *p, const vqm_block *b, uint64_t low, uint64_t high, uint8_t *out) {
    const unsigned k = b->bits / 8;
    const uint8_t *from = b->values;
    uint64_t place, n = 0;
    uint32_t i, j;
    for (i = 0; i < b->n_rows; i++) {
        const uint64_t row = row_place(p, b->row + i);
        if (b->in_order && k) { /* from `first` to `end` in one piece */
            const uint64_t start_of_row = row + column_place(p, b->column);
            const uint64_t end_of_row = start_of_row + b->n_columns;
            const uint64_t first = start_of_row < low ? low : start_of_row, end = end_of_row > high ? high : end_of_row;
            if (first < end)
                memcpy(out + (first - low) * k, from + (first - start_of_row) * k, (size_t)(end - first) * k);
            from += (size_t)b->n_columns * k;
            continue;
        }
        for (j = 0; j < b->n_columns; j++, n++) {
            place = row + column_place(p, b->column + j) - low; /* below low: a huge number */
            if (place >= high - low) {
                from += k;
            } else if (k) {
                put_word(out + place * k, from, k);
                from += k;
            } else { /* two words share a byte; they come in the order of their places */
                const unsigned word = b->values[n / 2] >> (4 * (n & 1)) & 15;
                out[place / 2] = (uint8_t)(place & 1 ? out[place / 2] | word << 4 : word);
            }
        }
    }
}

/* Whether the words of a block are computed where they belong: in one piece, and there is room for a binary32 in each. */
static int may_be_out(const plan *p, const vqm_block *b) {
    return b->in_order && b->bits >= (p->is_raw ? 8 : 32);
}

static vqm_status decode_range(vqm *f, uint64_t low, uint64_t high, uint8_t *out) {
    const plan *p = &f->plan;
    vqm_block block;
    TRY(rewind_blocks(f));
    while (f->row < p->n_rows) {
        block_at(f, f->row, f->column, &block);
        if (!is_wanted(p, &block, low, high)) {
            TRY(pass_block(f));
        } else {
            const uint64_t first = row_place(p, block.row) + column_place(p, block.column);
            const uint64_t n = (uint64_t)block.n_rows * block.n_columns;
            const int fits = may_be_out(p, &block) && first >= low && first + n <= high;
            uint8_t *const to = fits ? out + (first - low) * (block.bits / 8) : NULL;
            const mark m = mark_of(f);
            TRY(block_values(f, &block, to, &block.values));
            if (!to) put_block(p, &block, low, high, out);
            give_back(f, m);
        }
        next_block(f, &block);
    }
    return VQM_OK;
}

/* A failure in a stream stays: what follows cannot be read. A wrong call harms nothing. */
static vqm_status stay(vqm *f, vqm_status status) {
    if (!f->by_index && status != VQM_USAGE && status != VQM_END) f->status = status;
    return status;
}

vqm_status vqm_decode(vqm *f, void *out, uint64_t out_nbytes) {
    TRY(f->status);
    if (!f->current || out_nbytes < f->current->tensor.nbytes) return VQM_USAGE;
    TRY(stay(f, start(f)));
    if (!f->plan.n_elements) return VQM_OK;
    return stay(f, decode_range(f, 0, f->plan.n_elements << f->plan.is_complex, (uint8_t *)out));
}

vqm_status vqm_rows(vqm *f, uint64_t first, uint64_t count, void *out, uint64_t out_nbytes) {
    const vqm_tensor *t;
    uint64_t inner;
    TRY(f->status);
    if (!f->current || !f->current->tensor.rank) return VQM_USAGE;
    t = &f->current->tensor;
    if (first > t->dims[0] || count > t->dims[0] - first) return VQM_USAGE;
    TRY(stay(f, start(f)));
    if (!f->plan.n_elements || !count) return VQM_OK;
    inner = f->plan.n_elements / t->dims[0];
    if ((f->plan.bits == 4 ? ceil_div(count * inner, 2) : count * inner * (f->plan.bits / 8)) > out_nbytes)
        return VQM_USAGE;
    inner <<= f->plan.is_complex;
    return stay(f, decode_range(f, first * inner, (first + count) * inner, (uint8_t *)out));
}

static vqm_status one_block(vqm *f, vqm_block *block) {
    TRY(start(f));
    if (f->row >= f->plan.n_rows || !f->plan.n_elements) return VQM_END;
    if (f->row == 0 && f->column == 0) {
        TRY(rewind_blocks(f));
        f->block_mark = mark_of(f);
    }
    give_back(f, f->block_mark);
    block_at(f, f->row, f->column, block);
    TRY(block_values(f, block, NULL, &block->values));
    next_block(f, block);
    return VQM_OK;
}

vqm_status vqm_next_block(vqm *f, vqm_block *block) {
    TRY(f->status);
    return stay(f, one_block(f, block));
}

uint64_t vqm_place(const vqm *f, const vqm_block *b, uint32_t i, uint32_t j) {
    return row_place(&f->plan, b->row + i) + column_place(&f->plan, b->column + j);
}

/* What decoding the current tensor takes: its sections are passed over. */
static vqm_status measure_tensor(vqm *f, vqm_needs *needs) {
    const plan *p = &f->plan;
    vqm_block block;
    if (p->target || !p->n_elements) return VQM_OK;
    f->pretends = 1;
    TRY(load_residents(f));
    for (f->row = f->column = 0; f->row < p->n_rows; next_block(f, &block)) {
        const mark m = mark_of(f);
        block_at(f, f->row, f->column, &block);
        if (block.nbytes > needs->largest_block) needs->largest_block = block.nbytes;
        f->values_may_be_out = may_be_out(p, &block);
        TRY(block_values(f, &block, NULL, &block.values));
        f->values_nbytes = 0;
        give_back(f, m);
    }
    f->pretends = 0;
    return VQM_OK;
}

static vqm_status measure(vqm *f, vqm_needs *needs) {
    uint64_t layer_nbytes = 0;
    uint32_t layer = 0;
    vqm_status status;
    f->measures = 1;
    TRY(open_stream(f));
    while ((status = next_in_stream(f)) == VQM_OK) {
        const vqm_tensor *t = &f->current->tensor;
        if (t->layer != layer) layer_nbytes = 0;
        layer = t->layer;
        if (!t->target) layer_nbytes += t->nbytes;
        if (layer_nbytes > needs->largest_layer) needs->largest_layer = layer_nbytes;
        if (t->nbytes > needs->largest_tensor) needs->largest_tensor = t->nbytes;
        TRY(measure_tensor(f, needs));
    }
    return status == VQM_END ? VQM_OK : status;
}

vqm_status vqm_need(const vqm_source *source, void *arena, size_t arena_nbytes, vqm_needs *needs) {
    const uint64_t slack = 16; /* to align both ends */
    uint64_t stays;
    vqm *f;
    vqm_status status;
    memset(needs, 0, sizeof *needs);
    needs->scratch = sizeof(vqm) + 1024;
    TRY(create(&f, source, NULL, arena, arena_nbytes));
    status = measure(f, needs);
    stays = f->low + f->pretended_low + slack;
    needs->arena = stays + max_u64(f->most_of_others, f->most) + f->most_of_shared;
    needs->arena_by_block = stays + f->most_by_block + f->most_of_shared;
    needs->scratch = f->wanted + slack;
    return status;
}

vqm_source vqm_memory(const void *data, size_t n_bytes) {
    vqm_source source = {NULL, 0, NULL, NULL, NULL};
    source.memory = (const uint8_t *)data;
    source.nbytes = n_bytes;
    return source;
}

vqm_source vqm_stream(size_t (*read)(void *user, void *to, size_t n), void *user) {
    vqm_source source = {NULL, 0, NULL, NULL, NULL};
    source.read = read;
    source.user = user;
    return source;
}

vqm_meta vqm_metadata(const vqm *f) {
    return f->meta;
}

vqm_status vqm_layer_name(vqm *f, const char **name, size_t *n_bytes) {
    entry *const asked = f->current;
    TRY(f->status);
    if (!asked) return VQM_USAGE;
    if (f->body.chunk != asked->chunk) { /* by the index; the chunk of an alias is not that of its target */
        const vqm_status status = plan_by_index(f, asked);
        f->current = asked;
        TRY(status);
        f->is_planned = 0;
    }
    *name = (const char *)f->layer_name;
    *n_bytes = f->layer_name_nbytes;
    return VQM_OK;
}

const char *vqm_rule(const vqm *f) {
    return f->rule;
}

uint64_t vqm_offset(const vqm *f) {
    return f->offset;
}

const char *vqm_word(vqm_status status) {
    static const char *const words[] = {"ok",     "end",         "truncated", "checksum", "limit", "unsupported",
                                        "format", "unsupported", "limit",     "source",   "usage"};
    return words[status];
}

/* ---- SPEC 2: file ---- */

static vqm_status take_header(vqm *f, const uint8_t *header) {
    NEED(!memcmp(header, "\x89VQM\r\n\x1a\n", 8), VQM_FORMAT, "HDR-001");
    NEED(u16_at(header + 8) == 1, VQM_UNSUPPORTED, "HDR-002");
    NEED(u32_at(header + 12) == 0, VQM_FORMAT, "HDR-003");
    return VQM_OK;
}

static vqm_status take_footer(vqm *f) {
    const uint64_t index_offset = f->last_chunk->offset;
    uint8_t footer[28], further;
    TRY(get(f, footer, 28));
    NEED(crc_is(crc_of(0, footer, 24), u32_at(footer + 24)), VQM_CHECKSUM, "FTR-002");
    NEED(!memcmp(footer, f->header, 16), VQM_FORMAT, "FTR-002");
    NEED(u64_at(footer + 16) == index_offset, VQM_FORMAT, "FTR-003");
    NEED(get(f, &further, 1) == VQM_TRUNCATED, VQM_FORMAT, "FTR-001");
    return VQM_OK;
}

/* ---- SPEC 3: chunk ---- */

static int is_letter(uint8_t c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* 15.1, steps 3 to 10: up to the sections, with `body` for what was read. */
static vqm_status open_chunk(vqm *f, chunk *c) {
    uint8_t head[24], stored_crc[4];
    const uint8_t *stored = NULL, *table;
    uint8_t *plain = NULL;
    uint32_t flags, meta_stored, meta_plain, n_sections, crc = 0;
    int is_index, is_known;
    f->sha_before = f->sha;
    c->offset = f->offset;
    TRY(get(f, head, 24));
    flags = u32_at(head + 4), meta_stored = u32_at(head + 8), meta_plain = u32_at(head + 12);
    n_sections = u32_at(head + 16);
    NEED(crc_is(crc_of(0, head, 20), u32_at(head + 20)), VQM_CHECKSUM, "CHK-001");
    NEED(is_letter(head[0]) && is_letter(head[1]) && is_letter(head[2]) && is_letter(head[3]), VQM_FORMAT, "CHK-002");
    is_index = is_type(head, "INDX");
    is_known = is_index || is_type(head, "META") || is_type(head, "LAYR") || is_type(head, "BOOK") ||
               is_type(head, "FREQ");
    NEED(is_known || head[0] >= 'a', VQM_UNSUPPORTED, "CHK-003");
    NEED(flags <= 1, VQM_UNSUPPORTED, "CHK-004");
    NEED(meta_stored <= (is_index ? MAX_INDEX_META : MAX_META), VQM_LIMIT, "CHK-006");
    NEED(meta_plain <= (is_index ? MAX_INDEX_META : MAX_META), VQM_LIMIT, "CHK-006");
    NEED(n_sections <= MAX_SECTIONS, VQM_LIMIT, "CHK-006");
    NEED(c->place < MAX_CHUNKS, VQM_LIMIT, "LIM-001");
    if (f->by_index && c->nbytes) NEED(is_type(head, (const char *)c->type), VQM_FORMAT, "IDX-001");
    memcpy(c->type, head, 4);

    if (!is_known) { /* CHK-003: its meta is not looked at */
        TRY(pass(f, meta_stored, &crc, NULL));
        TRY(get_or_point(f, 8 * (uint64_t)n_sections, HIGH, NULL, &table));
    } else {
        if (flags) TRY(take(f, HIGH, meta_plain, &plain));
        TRY(get_or_point(f, 8 * (uint64_t)n_sections + meta_stored, HIGH, NULL, &stored));
        crc = crc_of(0, stored, meta_stored);
        table = stored + meta_stored;
    }
    crc = crc_of(crc, table, 8 * (size_t)n_sections);
    TRY(get(f, stored_crc, 4));
    NEED(crc_is(crc, u32_at(stored_crc)), VQM_CHECKSUM, "CHK-007");

    NEED(is_type(c->type, "META") == (c->place == 0), VQM_FORMAT, "FIL-001");
    NEED(!n_sections || !(is_index || is_type(c->type, "META")), VQM_FORMAT, "CHK-008");
    memset(&f->body, 0, sizeof f->body);
    f->body.chunk = c;
    f->body.n_sections = n_sections;
    f->body.table = table;
    f->body.data_offset = f->offset;
    if (!is_known) return VQM_OK;
    NEED(flags ? meta_stored < meta_plain : meta_stored == meta_plain, VQM_FORMAT, "CHK-005");
    if (flags) TRY(decompress(f, stored, meta_stored, plain, meta_plain));
    f->body.meta = flags ? plain : stored;
    f->body.meta_nbytes = meta_plain;
    return check_meta(f, f->body.meta, meta_plain);
}

/* ---- SPEC 4: section ---- */

/* The entry of the next section in the table. */
static void next_entry(vqm *f, uint32_t *stored, uint32_t *crc, int *is_frame) {
    const uint8_t *item = f->body.table + 8 * (size_t)f->body.section++;
    *stored = u32_at(item) & 0x7FFFFFFF;
    *is_frame = item[3] >> 7;
    *crc = u32_at(item + 4);
}

/* SEC-002, SEC-003 */
static vqm_status pass_padding(vqm *f, uint32_t stored, int is_frame) {
    int is_zero = 1;
    if (is_frame || stored < 4096) return VQM_OK;
    if (f->by_index || f->measures) return go_to(f, f->offset + (-f->offset & 63));
    TRY(pass(f, -f->offset & 63, NULL, &is_zero));
    NEED(is_zero, VQM_FORMAT, "SEC-003");
    return VQM_OK;
}

/* A section that nobody decodes. By the index it is not read. */
static vqm_status pass_section(vqm *f) {
    uint32_t stored, stored_crc, crc = 0;
    int is_frame;
    next_entry(f, &stored, &stored_crc, &is_frame);
    TRY(pass_padding(f, stored, is_frame));
    if (f->by_index || f->measures) return go_to(f, f->offset + stored);
    TRY(pass(f, stored, &crc, NULL));
    NEED(crc_is(crc, stored_crc), VQM_CHECKSUM, "SEC-001");
    return VQM_OK;
}

/* Steps 13 and 14: the stored bytes, in the file itself where that is in memory, else at `to`, or in the arena. */
static vqm_status stored_bytes(vqm *f, uint32_t stored, uint32_t crc, int is_frame, int end, uint8_t *to,
                               const uint8_t **bytes) {
    TRY(pass_padding(f, stored, is_frame));
    TRY(get_or_point(f, stored, end, to, bytes));
    if (!f->pretends) NEED(crc_is(crc_of(0, *bytes, stored), crc), VQM_CHECKSUM, "SEC-001");
    return VQM_OK;
}

/* Steps 12 to 15: the plain bytes of the next section, which has `plain` of them. They lie in the file, at `to`, or, if
   that is NULL, at an end of the arena. */
static vqm_status section(vqm *f, uint64_t plain, int end, uint8_t *to, const uint8_t **bytes) {
    const uint8_t *frame;
    uint32_t stored, crc;
    int is_frame;
    mark m;
    next_entry(f, &stored, &crc, &is_frame);
    NEED(is_frame ? stored < plain : stored == plain, VQM_FORMAT, "SEC-004");
    if (!is_frame) return stored_bytes(f, stored, crc, 0, end, to, bytes);
    if (!to) TRY(take(f, end, plain, &to));
    m = mark_of(f);
    TRY(stored_bytes(f, stored, crc, 1, HIGH, NULL, &frame));
    TRY(decompress(f, frame, stored, to, (size_t)plain));
    give_back(f, m);
    *bytes = to;
    return VQM_OK;
}

/* ANS-001 takes the place of SEC-004. */
static vqm_status payload_section(vqm *f, uint64_t least, uint64_t most, const uint8_t **bytes, size_t *n) {
    uint32_t stored, crc;
    int is_frame;
    next_entry(f, &stored, &crc, &is_frame);
    NEED(!is_frame && stored >= least && stored <= most && stored % 2 == 0, VQM_FORMAT, "ANS-001");
    *n = stored;
    return stored_bytes(f, stored, crc, 0, HIGH, NULL, bytes);
}

/* RFC 8878, 3.1.1.1: the header of a frame. What a zstd library lets pass is looked for here. */
static vqm_status check_frame_header(vqm *f, const uint8_t *frame, size_t n, size_t n_plain) {
    static const uint8_t id_sizes[4] = {0, 1, 2, 4}, content_sizes[4] = {0, 2, 4, 8};
    const uint8_t descriptor = n > 4 ? frame[4] : 0;
    const int is_single = descriptor >> 5 & 1;
    size_t at = is_single ? 5 : 6, size = content_sizes[descriptor >> 6], id_end = at + id_sizes[descriptor & 3], i;
    uint64_t content = 0;
    if (is_single && !size) size = 1;
    NEED(n > 4 && u32_at(frame) == 0xFD2FB528, VQM_FORMAT, "SEC-005");
    NEED(!(descriptor & 8), VQM_FORMAT, "SEC-009");
    NEED(n >= id_end + size, VQM_FORMAT, "SEC-005");
    for (; at < id_end; at++) NEED(frame[at] == 0, VQM_FORMAT, "SEC-008");
    for (i = 0; i < size; i++) content |= (uint64_t)frame[at + i] << (8 * i);
    NEED(size && content + (size == 2 ? 256 : 0) == n_plain, VQM_FORMAT, "SEC-006");
    if (!is_single) {
        const uint64_t window = (uint64_t)(8 + (frame[5] & 7)) << (7 + (frame[5] >> 3));
        NEED(window <= MAX_WINDOW, VQM_LIMIT, "SEC-007");
    }
    return VQM_OK;
}

static vqm_status decompress(vqm *f, const uint8_t *frame, size_t n, uint8_t *plain, size_t n_plain) {
    if (!f->pretends) TRY(check_frame_header(f, frame, n, n_plain));
#ifdef VQM_NO_ZSTD
    (void)plain;
    return refuse(f, VQM_NEEDS_ZSTD, "SEC-010");
#else
    {
        const size_t size = ZSTD_estimateDCtxSize();
        const mark m = mark_of(f);
        uint8_t *space;
        ZSTD_DCtx *context;
        TRY(take(f, HIGH, size, &space));
        if (!f->pretends) {
            /* The call below would decode further frames too: SEC-005 */
            NEED(ZSTD_findFrameCompressedSize(frame, n) == n, VQM_FORMAT, "SEC-005");
            context = ZSTD_initStaticDCtx(space, size);
            NEED(context, VQM_MEMORY, "");
            NEED(ZSTD_decompressDCtx(context, plain, n_plain, frame, n) == n_plain, VQM_FORMAT, "SEC-010");
        }
        give_back(f, m);
        return VQM_OK;
    }
#endif
}

/* ---- SPEC 5: metadata ---- */

static uint64_t big_endian(const uint8_t *p, unsigned width) {
    uint64_t n = 0;
    while (width--) n = n << 8 | *p++;
    return n;
}

/* Reads one value of at most `left` bytes, of a string or bin its bytes too. Returns where the next one begins, or NULL and
   the broken rule. */
static const uint8_t *parse_value(const uint8_t *at, size_t left, vqm_value *v, const char **rule) {
    unsigned width = 0, form = 0; /* a number of `width` bytes follows, the form-th of its row */
    uint64_t least = 0;           /* in the first form */
    uint8_t b;
    *rule = "MET-005";
    v->kind = VQM_NIL;
    v->bytes = NULL;
    v->n = 0;
    if (!left--) return NULL;
    b = *at++;
    if (b < 0x80) v->kind = VQM_INTEGER, v->n = b;
    else if (b < 0x90) v->kind = VQM_MAP, v->n = b & 15;
    else if (b < 0xA0) v->kind = VQM_ARRAY, v->n = b & 15;
    else if (b < 0xC0) v->kind = VQM_STRING, v->n = b & 31;
    else if (b >= 0xE0) v->kind = VQM_NEGATIVE, v->n = (uint64_t)b | ~UINT64_C(0xFF);
    else if (b == 0xC0) v->kind = VQM_NIL;
    else if (b == 0xC2) v->kind = VQM_FALSE;
    else if (b == 0xC3) v->kind = VQM_TRUE;
    else if (b >= 0xC4 && b <= 0xC6) v->kind = VQM_BIN, form = b - 0xC4, width = 1u << form;
    else if (b >= 0xCC && b <= 0xCF) v->kind = VQM_INTEGER, form = b - 0xCC, width = 1u << form, least = 128;
    else if (b >= 0xD0 && b <= 0xD3) v->kind = VQM_NEGATIVE, form = b - 0xD0, width = 1u << form, least = 32;
    else if (b >= 0xD9 && b <= 0xDB) v->kind = VQM_STRING, form = b - 0xD9, width = 1u << form, least = 32;
    else if (b == 0xDC || b == 0xDD) v->kind = VQM_ARRAY, form = b - 0xDC, width = 2u << form, least = 16;
    else if (b == 0xDE || b == 0xDF) v->kind = VQM_MAP, form = b - 0xDE, width = 2u << form, least = 16;
    else {
        *rule = "MET-001";
        return NULL;
    }
    if (width) {
        if (left < width) return NULL;
        v->n = big_endian(at, width);
        at += width;
        left -= width;
        *rule = "MET-002"; /* the form before it must be too short */
        if (form) least = UINT64_C(1) << (8 * (width / 2) - (v->kind == VQM_NEGATIVE));
        if (v->kind == VQM_NEGATIVE) {
            if (!(v->n >> (8 * width - 1))) return NULL;
            if (width < 8) v->n |= ~UINT64_C(0) << (8 * width);
            if (~v->n < least) return NULL;
        } else if (v->n < least) {
            return NULL;
        }
        *rule = "MET-005";
    }
    if (v->kind == VQM_STRING || v->kind == VQM_BIN) {
        if (v->n > left) return NULL;
        v->bytes = at;
        at += (size_t)v->n;
    } else if (v->kind == VQM_ARRAY || v->kind == VQM_MAP) { /* MET-007: each value takes a byte */
        if (v->n << (v->kind == VQM_MAP) > left) return NULL;
    }
    return at;
}

const uint8_t *vqm_value_at(const uint8_t *at, vqm_value *value) {
    const char *rule;
    return parse_value(at, SIZE_MAX, value, &rule);
}

/* MET-003 */
static int is_utf8(const uint8_t *p, uint64_t n) {
    const uint8_t *const end = p + (size_t)n;
    while (p < end) {
        const uint32_t b = *p++;
        uint32_t c, least, more;
        if (b < 0x80) continue;
        if (b < 0xC2 || b > 0xF4) return 0;
        more = b < 0xE0 ? 1 : b < 0xF0 ? 2 : 3;
        least = more == 1 ? 0x80 : more == 2 ? 0x800 : 0x10000;
        if ((size_t)(end - p) < more) return 0;
        for (c = b & (0x3F >> more); more; more--, p++) {
            if (*p >> 6 != 2) return 0;
            c = c << 6 | (*p & 0x3F);
        }
        if (c < least || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    }
    return 1;
}

static int compare_bytes(const uint8_t *a, uint64_t n_a, const uint8_t *b, uint64_t n_b) {
    const int order = memcmp(a, b, (size_t)(n_a < n_b ? n_a : n_b));
    return order ? order : n_a < n_b ? -1 : n_a > n_b;
}

/* MET-001 to MET-007 of a value and all in it; *at moves behind it. The depth bounds the recursion. */
static vqm_status check_value(vqm *f, const uint8_t **at, const uint8_t *end, int depth, uint32_t *n_values) {
    const uint8_t *const next = *at;
    vqm_value v, key;
    const char *rule;
    uint64_t i;
    NEED(next < end, VQM_FORMAT, "MET-005");
    NEED(depth <= MAX_DEPTH, VQM_LIMIT, "MET-006");
    NEED(++*n_values <= MAX_VALUES, VQM_LIMIT, "MET-007");
    *at = parse_value(next, (size_t)(end - next), &v, &rule);
    NEED(*at, VQM_FORMAT, rule);
    NEED(v.kind != VQM_STRING || is_utf8(v.bytes, v.n), VQM_FORMAT, "MET-003");
    if (v.kind == VQM_ARRAY)
        for (i = 0; i < v.n; i++) TRY(check_value(f, at, end, depth + 1, n_values));
    if (v.kind == VQM_MAP) {
        const uint8_t *last = NULL;
        uint64_t last_n = 0;
        for (i = 0; i < v.n; i++) {
            const uint8_t *const key_at = *at;
            TRY(check_value(f, at, end, depth + 1, n_values));
            vqm_value_at(key_at, &key);
            NEED(key.kind == VQM_STRING, VQM_FORMAT, "MET-004");
            NEED(!last || compare_bytes(last, last_n, key.bytes, key.n) < 0, VQM_FORMAT, "MET-004");
            last = key.bytes, last_n = key.n;
            TRY(check_value(f, at, end, depth + 1, n_values));
        }
    }
    return VQM_OK;
}

static vqm_status check_meta(vqm *f, const uint8_t *meta, size_t n) {
    uint32_t n_values = 0;
    const uint8_t *at = meta;
    TRY(check_value(f, &at, meta + n, 1, &n_values));
    NEED(at == meta + n, VQM_FORMAT, "MET-005");
    return VQM_OK;
}

/* From here on the metadata is one whole value, and `m` walks through it: MET-008. */
static vqm_status value_of(vqm *f, const uint8_t **m, vqm_kind kind, vqm_value *v) {
    *m = vqm_value_at(*m, v);
    NEED(v->kind == kind, VQM_FORMAT, "MET-008");
    return VQM_OK;
}

static vqm_status fields(vqm *f, const uint8_t **m, uint64_t n) {
    vqm_value v;
    TRY(value_of(f, m, VQM_ARRAY, &v));
    NEED(v.n == n, VQM_FORMAT, "MET-008");
    return VQM_OK;
}

/* An integer from `least` (else format) to `most` (else `over`), as `rule` wants it. */
static vqm_status number(vqm *f, const uint8_t **m, const char *rule, uint64_t least, uint64_t most, vqm_status over,
                         uint64_t *n) {
    vqm_value v;
    TRY(value_of(f, m, VQM_INTEGER, &v));
    NEED(v.n >= least, VQM_FORMAT, rule);
    NEED(v.n <= most, over, rule);
    *n = v.n;
    return VQM_OK;
}

/* The same for what fits in 32 bits. */
static vqm_status small(vqm *f, const uint8_t **m, const char *rule, uint32_t least, uint32_t most, vqm_status over,
                        uint32_t *n) {
    uint64_t found;
    TRY(number(f, m, rule, least, most, over, &found));
    *n = (uint32_t)found;
    return VQM_OK;
}

/* One that may be negative. */
static vqm_status whole(vqm *f, const uint8_t **m, const char *rule, int32_t least, int32_t most, int32_t *n) {
    vqm_value v;
    *m = vqm_value_at(*m, &v);
    NEED(v.kind == VQM_INTEGER || v.kind == VQM_NEGATIVE, VQM_FORMAT, "MET-008");
    if (v.kind == VQM_INTEGER) {
        NEED(v.n <= (uint64_t)most, VQM_FORMAT, rule);
        *n = (int32_t)v.n;
        NEED(*n >= least, VQM_FORMAT, rule);
    } else {
        NEED(least < 0 && ~v.n < (uint64_t)-(int64_t)least, VQM_FORMAT, rule);
        *n = -(int32_t)(uint32_t)~v.n - 1;
    }
    return VQM_OK;
}

static int is_nil(const uint8_t **m) {
    if (**m != 0xC0) return 0;
    ++*m;
    return 1;
}

/* CBK-007: of a table, BOOK or scale */
static vqm_status float_dtype(vqm *f, const uint8_t **m, uint8_t *dtype) {
    uint64_t id;
    TRY(number(f, m, "MET-008", 0, UINT64_MAX, VQM_FORMAT, &id));
    NEED(id >= VQM_F16 && id <= VQM_F32, VQM_UNSUPPORTED, "CBK-007");
    *dtype = (uint8_t)id;
    return VQM_OK;
}

/* The first field of an array, which tells what the others are. */
static vqm_status first_id(vqm *f, const uint8_t *m, uint64_t *id) {
    vqm_value v;
    TRY(value_of(f, &m, VQM_ARRAY, &v));
    NEED(v.n > 0, VQM_FORMAT, "MET-008");
    return number(f, &m, "MET-008", 0, UINT64_MAX, VQM_FORMAT, id);
}

/* ---- SPEC 6: chunk types ---- */

/* META. Of its bytes a hash is kept, to be compared with field 1 of INDX. */
static vqm_status take_meta(vqm *f, const uint8_t *m) {
    const uint8_t *const meta = m;
    vqm_sha256 sha;
    vqm_value v;
    TRY(fields(f, &m, 2));
    TRY(value_of(f, &m, VQM_STRING, &v));
    f->meta.generator = (const char *)v.bytes;
    f->meta.generator_nbytes = (size_t)v.n;
    f->meta.metadata = m;
    TRY(value_of(f, &m, VQM_MAP, &v));
    if (f->by_index) return VQM_OK;
    f->meta_nbytes = (uint32_t)f->body.meta_nbytes;
    vqm_sha256_start(&sha);
    vqm_sha256_add(&sha, meta, f->meta_nbytes);
    vqm_sha256_end(&sha, f->meta_digest);
    return VQM_OK;
}

/* LIM-002: before memory is taken */
static vqm_status hold(vqm *f, uint64_t n) {
    NEED(!f->options.max_total_nbytes || f->held + n <= f->options.max_total_nbytes, VQM_LIMIT, "LIM-002");
    f->held += n;
    return VQM_OK;
}

static unsigned float_nbytes(unsigned dtype) {
    return dtype == VQM_F32 ? 4 : 2;
}

static uint64_t book_nbytes(const chunk *c) {
    return capped_product((uint64_t)c->dim * c->entries, (uint64_t)c->groups * float_nbytes(c->dtype));
}

static vqm_status take_book(vqm *f) {
    chunk *const c = f->body.chunk;
    const uint8_t *m = f->body.meta;
    TRY(fields(f, &m, 4));
    TRY(small(f, &m, "BOK-002", 1, MAX_DIM, VQM_LIMIT, &c->dim));
    TRY(small(f, &m, "BOK-002", 1, MAX_ENTRIES, VQM_LIMIT, &c->entries));
    TRY(small(f, &m, "BOK-002", 1, MAX_GROUPS, VQM_LIMIT, &c->groups));
    TRY(float_dtype(f, &m, &c->dtype));
    NEED(f->body.n_sections == 1, VQM_FORMAT, "BOK-003");
    NEED(book_nbytes(c) <= MAX_RESIDENT, VQM_LIMIT, "LIM-001");
    return f->by_index ? VQM_OK : add_to_list(f, &f->books, c);
}

/* The largest absolute value of some, all of which have to be finite. */
static vqm_status largest_of(vqm *f, unsigned dtype, const uint8_t *values, uint64_t n, const char *rule, float *most) {
    uint64_t i;
    *most = 0;
    for (i = 0; i < n; i++) {
        const float value = value_at(dtype, values, i);
        NEED(is_finite(value), VQM_FORMAT, rule);
        *most = max_of(*most, value < 0 ? -value : value);
    }
    return VQM_OK;
}

static vqm_status load_book(vqm *f, chunk *c) {
    const uint64_t n = book_nbytes(c);
    float most;
    TRY(hold(f, n));
    TRY(section(f, n, LOW, NULL, &c->values));
    c->is_held = 1;
    if (f->pretends) return VQM_OK;
    return largest_of(f, c->dtype, c->values, n / float_nbytes(c->dtype), "BOK-002", &most);
}

static vqm_status take_freq(vqm *f) {
    chunk *const c = f->body.chunk;
    const uint8_t *m = f->body.meta;
    TRY(fields(f, &m, 3));
    TRY(small(f, &m, "FRQ-001", 1, 14, VQM_FORMAT, &c->precision));
    TRY(small(f, &m, "FRQ-001", 1, 1u << c->precision, VQM_FORMAT, &c->entries));
    TRY(small(f, &m, "FRQ-001", 1, MAX_FREQ >> c->precision, VQM_LIMIT, &c->tables));
    NEED(f->body.n_sections == 1, VQM_FORMAT, "FRQ-002");
    return f->by_index ? VQM_OK : add_to_list(f, &f->freqs, c);
}

static uint64_t weight_of(uint32_t byte) {
    return byte ? (uint64_t)(16 + (byte - 1) % 16) << (byte - 1) / 16 : 0;
}

/* The starts of the codes of one table, from its bytes. */
static vqm_status take_frequencies(vqm *f, const chunk *c, const uint8_t *bytes, uint16_t *starts, uint16_t *guide) {
    const uint32_t all = 1u << c->precision, part = all >> c->guide_bits;
    uint32_t i, n = 0, largest = 0, start = 0, rest = all, slot = 0;
    uint64_t sum = 0;
    for (i = 0; i < c->entries; i++) {
        n += bytes[i] != 0;
        sum += weight_of(bytes[i]);
        if (bytes[i] > bytes[largest]) largest = i; /* weights rise with their bytes */
    }
    NEED(n, VQM_FORMAT, "FRQ-003");
    for (i = 0; i < c->entries; i++) {
        const uint32_t frequency = bytes[i] ? 1 + (uint32_t)(weight_of(bytes[i]) * (all - n) / sum) : 0;
        starts[i] = (uint16_t)frequency;
        rest -= frequency;
    }
    for (i = 0; i < c->entries; i++) {
        const uint32_t frequency = starts[i] + (i == largest ? rest : 0);
        starts[i] = (uint16_t)start;
        start += frequency;
        for (; slot < start; slot += part) *guide++ = (uint16_t)i;
    }
    starts[c->entries] = (uint16_t)all;
    *guide = guide[-1];
    while (starts[*guide + 1] < all) ++*guide;
    return VQM_OK;
}

static vqm_status load_freq(vqm *f, chunk *c) {
    const uint64_t n = (uint64_t)c->tables * c->entries;
    const uint8_t *bytes;
    uint8_t *starts, *guides;
    uint32_t i;
    mark m;
    TRY(hold(f, n));
    c->guide_bits = c->precision < VQM_GUIDE_BITS ? (int)c->precision : VQM_GUIDE_BITS;
    TRY(take(f, LOW, 2 * (n + c->tables), &starts));
    TRY(take(f, LOW, (uint64_t)c->tables * 2 * ((1u << c->guide_bits) + 1), &guides));
    m = mark_of(f);
    TRY(section(f, n, HIGH, NULL, &bytes));
    c->is_held = 1;
    c->starts = (uint16_t *)(void *)starts, c->guides = (uint16_t *)(void *)guides;
    for (i = 0; i < c->tables && !f->pretends; i++)
        TRY(take_frequencies(f, c, bytes + (size_t)i * c->entries, c->starts + (size_t)i * (c->entries + 1),
                             c->guides + (size_t)i * ((1u << c->guide_bits) + 1)));
    give_back(f, m);
    return VQM_OK;
}

/* 15.2, step 5: the records of all BOOK and FREQ chunks, once. */
static vqm_status load_shared(vqm *f) {
    chunk *c;
    for (c = f->first_chunk; c && !f->has_shared; c = c->next) {
        const int is_book = is_type(c->type, "BOOK");
        if (!is_book && !is_type(c->type, "FREQ")) continue;
        TRY(go_to(f, c->offset));
        TRY(open_chunk(f, c));
        TRY(is_book ? take_book(f) : take_freq(f));
        give_back_all(f);
    }
    f->has_shared = 1;
    return VQM_OK;
}

/* By the index the section of a BOOK or FREQ chunk is read when a tensor needs it. */
static vqm_status need_section(vqm *f, chunk *c) {
    const body was = f->body;
    const uint64_t offset = f->offset;
    const mark m = mark_of(f);
    if (c->is_held) return VQM_OK;
    TRY(go_to(f, c->offset));
    TRY(open_chunk(f, c));
    TRY(is_type(c->type, "BOOK") ? load_book(f, c) : load_freq(f, c));
    give_back(f, m);
    f->body = was;
    TRY(go_to(f, offset));
    return VQM_OK;
}

/* BOK-001, FRQ-004: a chunk of the list that comes before the one that is being read. */
static vqm_status shared_chunk(vqm *f, const uint8_t **m, const chunk_list *list, const char *rule, chunk **found) {
    uint64_t n;
    TRY(number(f, m, rule, 0, list->n ? list->n - 1 : 0, VQM_FORMAT, &n));
    NEED(list->n, VQM_FORMAT, rule);
    *found = list->items[n];
    NEED((*found)->place < f->body.chunk->place, VQM_FORMAT, rule);
    return VQM_OK;
}

/* LAYR. All records are checked before the first section is read; each is read again when its tensor is decoded. In a
   stream the tensors are added to the list of the file, by the index they are compared with it (IDX-003). */
static vqm_status take_tensor(vqm *f, entry *listed) {
    const plan *p = &f->plan;
    chunk *const c = f->body.chunk;
    const entry *target = NULL;
    entry *e = listed;
    if (!f->by_index) NEED(!*find_entry(f, p->name, p->name_nbytes), VQM_FORMAT, "TEN-002");
    if (p->target) {
        target = *find_entry(f, p->target, p->target_nbytes);
        NEED(target && !target->tensor.target, VQM_FORMAT, "ALI-001");
    }
    if (f->by_index) {
        const vqm_tensor *t = &e->tensor;
        NEED(e->chunk == c && t->name_nbytes == p->name_nbytes, VQM_FORMAT, "IDX-003");
        NEED(!memcmp(t->name, p->name, p->name_nbytes), VQM_FORMAT, "IDX-003");
        NEED(t->target == (target ? &target->tensor : NULL), VQM_FORMAT, "IDX-003");
        if (target) return VQM_OK;
        NEED((int)t->dtype == p->dtype && t->rank == p->rank, VQM_FORMAT, "IDX-003");
        NEED(!p->rank || !memcmp(t->dims, p->dims, p->rank * sizeof *p->dims), VQM_FORMAT, "IDX-003");
        return VQM_OK;
    }
    TRY(add_entry(f, p->name, p->name_nbytes, target ? 0 : p->rank, &e));
    e->chunk = c;
    e->tensor.layer = c->number;
    if (target) {
        e->tensor.target = &target->tensor;
        e->tensor.dims = target->tensor.dims;
        e->tensor.rank = target->tensor.rank;
        e->tensor.dtype = target->tensor.dtype;
        e->tensor.nbytes = target->tensor.nbytes;
    } else {
        if (p->rank) memcpy((uint64_t *)e->tensor.dims, p->dims, p->rank * sizeof *p->dims);
        e->tensor.dtype = (vqm_dtype)p->dtype;
        e->tensor.nbytes = p->nbytes;
    }
    return VQM_OK;
}

static vqm_status take_layer(vqm *f) {
    const uint8_t *m = f->body.meta;
    const mark at_start = mark_of(f);
    entry *const last = f->last, *listed = f->first;
    uint64_t n_sections = 0, i;
    vqm_value name, records;
    TRY(fields(f, &m, 2));
    TRY(value_of(f, &m, VQM_STRING, &name));
    NEED(name.n <= MAX_NAME, VQM_LIMIT, "LIM-001");
    TRY(value_of(f, &m, VQM_ARRAY, &records));
    NEED(records.n > 0, VQM_FORMAT, "LYR-001");
    if (!f->by_index) NEED(records.n <= MAX_TENSORS - f->n_tensors, VQM_LIMIT, "LIM-001");
    f->layer_name = name.bytes;
    f->layer_name_nbytes = (size_t)name.n;
    f->chunk_mark = at_start;
    f->records = m;
    f->n_records = (uint32_t)records.n;
    f->next_section = 0;
    if (f->by_index) {
        while (listed && listed->chunk != f->body.chunk) listed = listed->next;
        f->next = listed;
    } else {
        f->body.chunk->number = f->n_layers++;
    }
    for (i = 0; i < records.n; i++) {
        NEED(!f->by_index || listed, VQM_FORMAT, "IDX-003");
        TRY(plan_tensor(f, &m));
        TRY(take_tensor(f, listed));
        give_back(f, at_start);
        n_sections += f->plan.n_sections;
        NEED(n_sections <= MAX_SECTIONS, VQM_FORMAT, "LYR-002");
        if (listed) listed = listed->next;
    }
    NEED(n_sections == f->body.n_sections, VQM_FORMAT, "LYR-002");
    if (f->by_index) NEED(!listed || listed->chunk != f->body.chunk, VQM_FORMAT, "IDX-003");
    else f->next = last ? last->next : f->first;
    return VQM_OK;
}

/* ---- SPEC 7: tensor ---- */

static unsigned dtype_bits(unsigned dtype) {
    static const uint8_t bits[VQM_N_DTYPES] = {8,  8,  8,   16, 16, 32, 32, 64, 64, 16, 16, 32,
                                               64, 64, 128, 8,  8,  8,  8,  8,  4,  4,  4};
    return bits[dtype];
}

const char *vqm_dtype_name(vqm_dtype dtype) {
    static const char *const names[VQM_N_DTYPES] = {
        "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "bf16", "f32", "f64", "c64", "c128",
        "f8_e4m3fn", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0fnu", "u4", "i4", "f4_e2m1fn"};
    return names[dtype];
}

static int is_complex(unsigned dtype) {
    return dtype == VQM_C64 || dtype == VQM_C128;
}

/* TEN-003. The limit keeps all sizes below 2^63. */
static vqm_status take_shape(vqm *f, const uint64_t *dims, unsigned rank, unsigned dtype, uint64_t *n_elements,
                             uint64_t *nbytes) {
    const unsigned bits = dtype_bits(dtype);
    uint64_t product = 1;
    unsigned i;
    *n_elements = 1;
    for (i = 0; i < rank; i++) {
        if (dims[i]) {
            NEED(dims[i] <= MAX_ELEMENTS / product, VQM_LIMIT, "TEN-003");
            product *= dims[i];
        }
        *n_elements = dims[i] && *n_elements ? product : 0;
    }
    *nbytes = bits == 4 ? ceil_div(*n_elements, 2) : *n_elements * (bits / 8);
    return VQM_OK;
}

/* TEN-007, and the count of LIM-002 */
static vqm_status add_resident(vqm *f, uint64_t n) {
    NEED(n <= MAX_RESIDENT, VQM_LIMIT, "TEN-007");
    f->plan.resident_nbytes += n;
    f->plan.n_residents++;
    return VQM_OK;
}

/* 7.2: view, order and blocks */
static vqm_status plan_layout(vqm *f, const uint8_t **m, const uint64_t *sizes, unsigned n_axes) {
    static const uint8_t nothing[] = {0x95, 0xC0, 0, 0, 0, 0};
    const uint8_t *none = nothing, *axes;
    plan *p = &f->plan;
    uint64_t strides[MAX_AXES + 1], n_row_axes, found, b, c, stride = 1, seen = 0;
    vqm_value v;
    unsigned i;
    int is_identity = 1;
    if (is_nil(m)) m = &none;
    TRY(fields(f, m, 5));
    axes = *m;
    if (!is_nil(m)) {
        TRY(fields(f, m, n_axes));
        for (i = 0; i < n_axes; i++) {
            TRY(number(f, m, "LAY-001", 0, n_axes - 1, VQM_FORMAT, &found));
            NEED(!(seen >> found & 1), VQM_FORMAT, "LAY-001");
            seen |= UINT64_C(1) << found;
            if (found != i) is_identity = 0;
        }
        NEED(!is_identity, VQM_FORMAT, "LAY-001");
    }
    TRY(number(f, m, "LAY-001", 0, n_axes, VQM_FORMAT, &n_row_axes));
    TRY(small(f, m, "LAY-003", 0, 3, VQM_UNSUPPORTED, &p->order));
    NEED(!p->is_raw || (is_identity && !p->order), VQM_FORMAT, "LAY-002");
    p->is_plain = is_identity && !p->order;

    for (i = n_axes; i--; stride *= sizes[i]) strides[i] = stride;
    if (!is_identity) axes = vqm_value_at(axes, &v); /* behind the number of axes, to read them again */
    p->n_rows = p->n_columns = 1;
    for (i = 0; i < n_axes; i++) {
        found = i;
        if (!is_identity) TRY(number(f, &axes, "LAY-001", 0, n_axes - 1, VQM_FORMAT, &found));
        if (found == 0) p->rows_have_first = i < n_row_axes;
        if (i < n_row_axes) p->n_rows *= sizes[found];
        else p->n_columns *= sizes[found];
        if (i == n_row_axes) p->n_row_axes = p->n_axes;
        if (sizes[found] == 1) continue;
        if (p->n_axes > (i < n_row_axes ? 0 : p->n_row_axes) &&
            p->axes[p->n_axes - 1].stride == sizes[found] * strides[found]) {
            p->axes[p->n_axes - 1].size *= sizes[found];
            p->axes[p->n_axes - 1].stride = strides[found];
        } else {
            p->axes[p->n_axes].size = sizes[found];
            p->axes[p->n_axes++].stride = strides[found];
        }
    }
    if (n_row_axes == n_axes) p->n_row_axes = p->n_axes;

    TRY(number(f, m, "MET-008", 0, UINT64_MAX, VQM_FORMAT, &b));
    TRY(number(f, m, "MET-008", 0, UINT64_MAX, VQM_FORMAT, &c));
    NEED(c ? b == 1 && c < p->n_columns : b < p->n_rows, VQM_FORMAT, "LAY-004");
    p->block_rows = b ? b : p->n_rows;
    p->block_columns = c ? c : p->n_columns;
    NEED(p->block_rows * p->block_columns <= MAX_BLOCK, VQM_LIMIT, "LAY-005");
    p->n_blocks = ceil_div(p->n_rows, p->block_rows) * ceil_div(p->n_columns, p->block_columns);
    if (p->order & 1) TRY(add_resident(f, p->n_rows));
    if (p->order & 2) TRY(add_resident(f, p->n_columns));
    return VQM_OK;
}

/* TEN-005, TEN-006: whether the stages are of a kind, before what is in them; `m` is at the first. */
static vqm_status check_stages(vqm *f, const uint8_t *m) {
    plan *p = &f->plan;
    unsigned i;
    for (i = 0; i < p->n_stages; i++) {
        uint64_t id;
        uint32_t n_values = 0;
        TRY(first_id(f, m, &id));
        NEED(id <= 5 && id != 3, VQM_UNSUPPORTED, "TEN-006");
        if (id == 0 || id == 5) {
            NEED(p->n_stages == 1, VQM_FORMAT, "TEN-005");
            p->is_raw = 1;
        } else {
            NEED(p->dtype >= VQM_F16 && p->dtype <= VQM_C128, VQM_FORMAT, "TEN-005");
        }
        TRY(check_value(f, &m, f->body.meta + f->body.meta_nbytes, 1, &n_values)); /* to the next stage */
    }
    return VQM_OK;
}

static vqm_status plan_tensor(vqm *f, const uint8_t **m) {
    plan *p = &f->plan;
    vqm_value v;
    const uint8_t *layout;
    uint64_t n_fields, id;
    uint32_t i, dtype, n_values = 0;
    uint8_t *stages;
    memset(p, 0, sizeof *p);
    TRY(value_of(f, m, VQM_ARRAY, &v));
    n_fields = v.n;
    NEED(n_fields == 2 || n_fields == 5, VQM_FORMAT, "MET-008");
    TRY(value_of(f, m, VQM_STRING, &v));
    NEED(v.n > 0, VQM_FORMAT, "TEN-001");
    NEED(v.n <= MAX_NAME, VQM_LIMIT, "TEN-001");
    NEED(!memchr(v.bytes, 0, (size_t)v.n), VQM_FORMAT, "TEN-001");
    p->name = v.bytes;
    p->name_nbytes = (size_t)v.n;
    if (n_fields == 2) {
        TRY(value_of(f, m, VQM_STRING, &v));
        NEED(v.n <= MAX_NAME, VQM_LIMIT, "ALI-001");
        p->target = v.bytes;
        p->target_nbytes = (size_t)v.n;
        return VQM_OK;
    }
    TRY(small(f, m, "TEN-006", 0, VQM_N_DTYPES - 1, VQM_UNSUPPORTED, &dtype));
    p->dtype = (uint8_t)dtype;
    p->bits = (uint8_t)dtype_bits(dtype);
    TRY(value_of(f, m, VQM_ARRAY, &v));
    NEED(v.n <= MAX_AXES, VQM_LIMIT, "TEN-003");
    p->rank = (unsigned)v.n;
    for (i = 0; i < p->rank; i++) TRY(number(f, m, "TEN-003", 0, MAX_ELEMENTS, VQM_LIMIT, &p->dims[i]));
    TRY(take_shape(f, p->dims, p->rank, dtype, &p->n_elements, &p->nbytes));
    layout = *m;
    TRY(check_value(f, m, f->body.meta + f->body.meta_nbytes, 1, &n_values));
    TRY(value_of(f, m, VQM_ARRAY, &v));
    if (!p->n_elements) {
        NEED(is_nil(&layout) && !v.n, VQM_FORMAT, "TEN-004");
        return VQM_OK;
    }
    NEED(v.n > 0, VQM_FORMAT, "TEN-004");
    NEED(v.n <= MAX_STAGES, VQM_LIMIT, "TEN-004");
    p->n_stages = (unsigned)v.n;
    TRY(check_stages(f, *m));
    p->is_complex = is_complex(dtype) && !p->is_raw;
    {
        uint64_t sizes[MAX_AXES + 1];
        memcpy(sizes, p->dims, p->rank * sizeof *sizes);
        sizes[p->rank] = 2;
        TRY(plan_layout(f, &layout, sizes, p->rank + (unsigned)p->is_complex));
    }
    TRY(take(f, HIGH, p->n_stages * sizeof(stage), &stages));
    memset(stages, 0, p->n_stages * sizeof(stage));
    p->stages = (stage *)(void *)stages;
    for (i = 0; i < p->n_stages; i++) {
        stage *const s = &p->stages[i];
        TRY(first_id(f, *m, &id));
        s->id = (uint32_t)id;
        switch (id) {
            case 1: TRY(plan_codebook(f, m, &s->as.codebook)); break;
            case 2: TRY(plan_low_rank(f, m, &s->as.low_rank)); break;
            case 4: TRY(plan_trellis(f, m, &s->as.trellis)); break;
            default: TRY(plan_raw(f, m, &s->as.raw, id == 5));
        }
    }
    p->n_sections = capped_product(p->n_blocks, p->per_block);
    p->n_sections = p->n_sections > MAX_SECTIONS ? MAX_SECTIONS + 1 : p->n_sections + p->n_residents; /* LYR-002 */
    return VQM_OK;
}

/* 7.2: the classes of rows or columns, and which of the view each stored one is. */
static vqm_status load_order(vqm *f, uint64_t n, uint32_t **order) {
    uint32_t at[256] = {0}, sum = 0, i;
    const uint8_t *classes;
    uint8_t *space;
    mark m;
    TRY(take(f, HIGH, 4 * n, &space));
    m = mark_of(f);
    TRY(section(f, n, HIGH, NULL, &classes));
    if (!f->pretends) {
        *order = (uint32_t *)(void *)space;
        for (i = 0; i < n; i++) at[classes[i]]++;
        for (i = 0; i < 256; i++) {
            const uint32_t count = at[i];
            at[i] = sum;
            sum += count;
        }
        for (i = 0; i < n; i++) (*order)[at[classes[i]]++] = i;
    }
    give_back(f, m);
    return VQM_OK;
}

/* 7.3, items 1 to 3, and VAL-002 */
static vqm_status load_residents(vqm *f) {
    plan *p = &f->plan;
    float sum = 0;
    unsigned i;
    f->row = f->column = 0;
    if (!p->n_elements || p->is_raw) return VQM_OK;
    if (p->order & 1) TRY(load_order(f, p->n_rows, &p->row_order));
    if (p->order & 2) TRY(load_order(f, p->n_columns, &p->column_order));
    for (i = 0; i < p->n_stages; i++) {
        stage *const s = &p->stages[i];
        float bound = 0;
        switch (s->id) {
            case 1: TRY(load_codebook(f, &s->as.codebook, &bound)); break;
            case 2: TRY(load_low_rank(f, &s->as.low_rank, &bound)); break;
            default: TRY(load_trellis(f, &s->as.trellis, &bound));
        }
        NEED(is_finite(bound), VQM_FORMAT, "VAL-002");
        sum = i ? sum + bound : bound;
        NEED(is_finite(sum), VQM_FORMAT, "VAL-002");
    }
    /* The least values that round to infinity */
    if (p->dtype == VQM_F16) NEED(sum < 65520.0f, VQM_FORMAT, "VAL-002");
    if (p->dtype == VQM_BF16) NEED(bits_of(sum) < 0x7F7F8000, VQM_FORMAT, "VAL-002");
    return VQM_OK;
}

static void block_at(const vqm *f, uint64_t row, uint64_t column, vqm_block *b) {
    const plan *p = &f->plan;
    const uint64_t rows = p->n_rows - row, columns = p->n_columns - column;
    b->row = row;
    b->column = column;
    b->n_rows = (uint32_t)(rows < p->block_rows ? rows : p->block_rows);
    b->n_columns = (uint32_t)(columns < p->block_columns ? columns : p->block_columns);
    b->bits = p->bits >> p->is_complex;
    b->nbytes = ((uint64_t)b->n_rows * b->n_columns * b->bits + 7) / 8;
    b->in_order = p->is_plain;
    b->is_whole = !p->is_complex;
    b->values = NULL;
}

static void next_block(vqm *f, const vqm_block *b) {
    f->column += b->n_columns;
    if (f->column < f->plan.n_columns) return;
    f->column = 0;
    f->row += b->n_rows;
}

/* Where a row or column of the view begins, from its axes: the last varies fastest. */
static uint64_t place_of(const plan *p, unsigned first, unsigned end, uint64_t index) {
    uint64_t place = 0;
    while (end > first + 1) {
        const uint64_t size = p->axes[--end].size;
        uint64_t rest = index;
        if (index <= UINT32_MAX && size <= UINT32_MAX) index = (uint32_t)index / (uint32_t)size;
        else index /= size;
        rest -= index * size;
        place += rest * p->axes[end].stride;
    }
    return end > first ? place + index * p->axes[first].stride : place;
}

static uint64_t row_place(const plan *p, uint64_t row) {
    return place_of(p, 0, p->n_row_axes, p->row_order ? p->row_order[row] : row);
}

static uint64_t column_place(const plan *p, uint64_t column) {
    return place_of(p, p->n_row_axes, p->n_axes, p->column_order ? p->column_order[column] : column);
}

/* VAL-001: binary32 values become words of the dtype where they are. None of them overflows (VAL-002). */
static void convert(unsigned dtype, uint8_t *values, size_t n) {
    size_t i;
    switch (dtype) {
        case VQM_F16:
            for (i = 0; i < n; i++) {
                const uint32_t bits = u32_at(values + 4 * i), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
                uint32_t half;
                if (rest >= 0x38800000) /* 2^-14, the least normal one */
                    half = (rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13;
                else /* a sum near 0.5 is rounded to a multiple of 2^-24 */
                    half = bits_of(float_of(rest) + 0.5f) - 0x3F000000;
                put16(values + 2 * i, sign | half);
            }
            break;
        case VQM_BF16:
            for (i = 0; i < n; i++) {
                const uint32_t bits = u32_at(values + 4 * i);
                put16(values + 2 * i, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
            }
            break;
        case VQM_F64:
        case VQM_C128:
            for (i = n; i--;) {
                const double wide = float_of(u32_at(values + 4 * i));
                uint64_t bits;
                memcpy(&bits, &wide, 8);
                put32(values + 8 * i, (uint32_t)bits);
                put32(values + 8 * i + 4, (uint32_t)(bits >> 32));
            }
            break;
        default: break;
    }
}

/* 7.3, item 4, and 7.4: the words of a block, at `to` or, if that is NULL, in the arena or the file. */
static vqm_status block_values(vqm *f, const vqm_block *b, uint8_t *to, const uint8_t **values) {
    const plan *p = &f->plan;
    const size_t n = (size_t)b->n_rows * b->n_columns;
    const size_t n_bytes = p->is_raw ? (size_t)b->nbytes : n * (b->bits == 64 ? 8 : 4);
    unsigned i;
    if (f->pretends) { /* counted by itself, since it may be the caller's */
        f->values_nbytes = n_bytes;
        note_most(f);
        to = f->arena;
    }
    if (p->is_raw) return raw_block(f, b, to, values);
    if (!to) TRY(take(f, HIGH, n_bytes, &to));
    for (i = 0; i < p->n_stages; i++) {
        const stage *const s = &p->stages[i];
        const mark m = mark_of(f);
        switch (s->id) {
            case 1: TRY(codebook_block(f, &s->as.codebook, b, i > 0, to)); break;
            case 2: TRY(low_rank_block(f, &s->as.low_rank, b, i > 0, to)); break;
            default: TRY(trellis_block(f, &s->as.trellis, b, i > 0, to));
        }
        give_back(f, m);
    }
    *values = to;
    if (!f->pretends) convert(p->dtype, to, n);
    return VQM_OK;
}

/* 7.4: t = v for the first stage, f32(t + v) for those after it. */
static void put_value(uint8_t *t, float v, int adds) {
    put32(t, bits_of(adds ? float_of(u32_at(t)) + v : v));
}

/* ---- SPEC 8: raw stage ---- */

/* RAW-003: a word is an element, or half of a complex one. */
static unsigned word_nbytes(const plan *p) {
    return p->bits / 8u >> is_complex(p->dtype);
}

static vqm_status plan_raw(vqm *f, const uint8_t **m, raw_stage *s, int is_sparse) {
    plan *p = &f->plan;
    uint32_t split;
    uint64_t i, id;
    s->is_sparse = is_sparse;
    TRY(fields(f, m, is_sparse ? 3 : 2));
    TRY(number(f, m, "MET-008", 0, 5, VQM_FORMAT, &id));
    TRY(small(f, m, "MET-008", 0, UINT32_MAX, VQM_UNSUPPORTED, &split));
    NEED(split <= 2 && split >= (uint32_t)is_sparse, VQM_UNSUPPORTED, is_sparse ? "SPA-001" : "RAW-001");
    NEED(!split || p->bits > 8, VQM_FORMAT, is_sparse ? "SPA-001" : "RAW-001");
    s->split = split;
    p->per_block = split ? word_nbytes(p) + (is_sparse ? 2 : 0) : 1;
    if (!is_sparse) return VQM_OK;
    TRY(open_column(f, m, p->n_blocks, &s->counts));
    f->row = f->column = 0;
    for (i = 0; i < p->n_blocks; i++) {
        vqm_block b;
        block_at(f, f->row, f->column, &b);
        NEED(column_at(&s->counts, i) <= b.nbytes / word_nbytes(p), VQM_FORMAT, "SPA-002");
        next_block(f, &b);
    }
    f->row = f->column = 0;
    return VQM_OK;
}

static int bit_at(const uint8_t *bits, size_t i) {
    return bits[i / 8] >> (i % 8) & 1;
}

/* SPA-004: as many bits as are said are set, if `count` is not SIZE_MAX, and none beyond the last */
static int bits_are_right(const uint8_t *bits, size_t n, size_t count) {
    size_t i, found = 0;
    for (i = 0; i < n; i++) found += (size_t)bit_at(bits, i);
    if (n % 8 && bits[n / 8] >> (n % 8)) return 0;
    return count == SIZE_MAX || found == count;
}

static vqm_status raw_plain(vqm *f, const vqm_block *b, uint8_t *to, const uint8_t **values) {
    const size_t n = (size_t)b->nbytes;
    size_t i;
    TRY(section(f, n, HIGH, to, values));
    if (f->pretends) return VQM_OK;
    if (b->bits == 4 && b->n_rows * b->n_columns % 2) NEED((*values)[n - 1] < 16, VQM_FORMAT, "RAW-002");
    if (f->plan.dtype == VQM_BOOL)
        for (i = 0; i < n; i++) NEED((*values)[i] <= 1, VQM_FORMAT, "DTY-001");
    if (to && *values != to) memcpy(to, *values, n);
    return VQM_OK;
}

static vqm_status raw_block(vqm *f, const vqm_block *b, uint8_t *to, const uint8_t **values) {
    const raw_stage *s = &f->plan.stages[0].as.raw;
    const unsigned k = word_nbytes(&f->plan);
    const uint8_t *marks = NULL, *signs = NULL, *plane;
    size_t n, m, i, bare = 0;
    unsigned q;
    mark before;
    if (!s->split) return raw_plain(f, b, to, values);
    n = m = (size_t)b->nbytes / k;
    if (!to) TRY(take(f, HIGH, b->nbytes, &to));
    *values = to;
    before = mark_of(f);
    if (s->is_sparse) {
        const plan *p = &f->plan;
        const uint64_t per_row = ceil_div(p->n_columns, p->block_columns);
        m = (size_t)column_at(&s->counts, b->row / p->block_rows * per_row + b->column / p->block_columns);
        TRY(section(f, ceil_div(n, 8), HIGH, NULL, &marks));
        TRY(section(f, ceil_div(n - m, 8), HIGH, NULL, &signs));
        if (!f->pretends) {
            NEED(bits_are_right(marks, n, m), VQM_FORMAT, "SPA-004");
            NEED(bits_are_right(signs, n - m, SIZE_MAX), VQM_FORMAT, "SPA-004");
            memset(to, 0, n * k);
            for (i = 0; i < n; i++)
                if (!bit_at(marks, i)) to[i * k + k - 1] = (uint8_t)(bit_at(signs, bare++) << 7);
        }
    }
    for (q = 0; q < k; q++) {
        const mark at_plane = mark_of(f);
        TRY(section(f, m, HIGH, NULL, &plane));
        for (i = 0; i < n && !f->pretends; i++)
            if (!marks || bit_at(marks, i)) to[i * k + q] = *plane++;
        give_back(f, at_plane);
    }
    for (i = 0; i < n && s->split == 2 && !f->pretends; i++) { /* RAW-004: rotate right by one bit */
        uint8_t *const word = to + i * k;
        const unsigned lowest = word[0] & 1u;
        if (marks && !bit_at(marks, i)) continue;
        for (q = 0; q + 1 < k; q++) word[q] = (uint8_t)(word[q] >> 1 | word[q + 1] << 7);
        word[k - 1] = (uint8_t)(word[k - 1] >> 1 | lowest << 7);
    }
    give_back(f, before);
    return VQM_OK;
}

/* ---- SPEC 9: codebook stage ---- */

/* CBK-003: a group size; 0 stands for the whole axis. */
static vqm_status group_size(vqm *f, const uint8_t **m, uint64_t axis, uint64_t *size) {
    TRY(number(f, m, "CBK-003", 0, axis - 1, VQM_FORMAT, size));
    if (!*size) *size = axis;
    return VQM_OK;
}

/* 9.2: groups of a matrix of rows and columns */
static void plan_groups(grid *g, uint64_t n_rows, uint64_t n_columns, uint64_t size) {
    g->n_columns = ceil_div(n_columns, g->columns);
    g->n_groups = capped_product(ceil_div(n_rows, g->rows), g->n_columns);
    g->nbytes = capped_product(g->n_groups, size * float_nbytes(g->dtype));
}

/* nil, or [dtype, rows, columns] */
static vqm_status plan_scale(vqm *f, const uint8_t **m, int *has_scale, grid *g) {
    const plan *p = &f->plan;
    *has_scale = !is_nil(m);
    if (!*has_scale) return VQM_OK;
    TRY(fields(f, m, 3));
    TRY(float_dtype(f, m, &g->dtype));
    TRY(group_size(f, m, p->n_rows, &g->rows));
    TRY(group_size(f, m, p->n_columns, &g->columns));
    plan_groups(g, p->n_rows, p->n_columns, 1);
    return VQM_OK;
}

static vqm_status load_grid(vqm *f, grid *g, float *most) {
    TRY(section(f, g->nbytes, HIGH, NULL, &g->values));
    *most = 0;
    if (f->pretends) return VQM_OK;
    return largest_of(f, g->dtype, g->values, g->nbytes / float_nbytes(g->dtype), "CBK-008", most);
}

/* The group of an element, as one goes along a row. */
typedef struct {
    const grid *grid;
    uint64_t index, left; /* columns left in the group */
    float value;          /* its first value, where `is_scale` */
    int is_scale;
} group_walk;

static void walk_to(group_walk *w, const grid *g, uint64_t row, uint64_t column, int is_scale) {
    w->grid = g;
    w->is_scale = is_scale;
    w->index = row / g->rows * g->n_columns + column / g->columns;
    w->left = g->columns - column % g->columns;
    w->value = is_scale ? value_at(g->dtype, g->values, w->index) : 1;
}

static void walk_on(group_walk *w) {
    if (--w->left) return;
    w->left = w->grid->columns;
    if (++w->index < w->grid->n_groups && w->is_scale) w->value = value_at(w->grid->dtype, w->grid->values, w->index);
}

/* The fields of a source of id 4: CBK-009 */
static vqm_status plan_floats(vqm *f, const uint8_t **m, codebook_stage *s) {
    int32_t n;
    uint32_t u;
    TRY(small(f, m, "CBK-009", 0, 1, VQM_FORMAT, &u));
    s->is_signed = (int)u;
    TRY(small(f, m, "CBK-009", 0, 5, VQM_FORMAT, &u));
    s->exponent_bits = (int)u;
    TRY(small(f, m, "CBK-009", 0, 10, VQM_FORMAT, &u));
    s->fraction_bits = (int)u;
    TRY(whole(f, m, "CBK-009", -120, 60, &n));
    s->exponent = n;
    NEED(s->dim == 1 && s->entries == 1u << (s->is_signed + s->exponent_bits + s->fraction_bits), VQM_FORMAT, "CBK-009");
    return VQM_OK;
}

static vqm_status plan_codebook(vqm *f, const uint8_t **m, codebook_stage *s) {
    plan *p = &f->plan;
    grid *const t = &s->table;
    uint64_t id, n_subvectors;
    uint32_t choice;
    TRY(fields(f, m, 9));
    TRY(number(f, m, "MET-008", 0, 5, VQM_FORMAT, &id));
    TRY(small(f, m, "CBK-001", 1, MAX_DIM, VQM_LIMIT, &s->dim));
    TRY(small(f, m, "CBK-001", 1, MAX_ENTRIES, VQM_LIMIT, &s->entries));
    NEED(s->dim <= p->n_columns, VQM_FORMAT, "CBK-001");
    NEED(p->block_columns == p->n_columns || p->block_columns % s->dim == 0, VQM_FORMAT, "CBK-002");

    TRY(first_id(f, *m, &id));
    NEED(id <= 4 && id != 3, VQM_UNSUPPORTED, "CBK-007");
    s->source = (uint32_t)id;
    TRY(fields(f, m, id == 4 ? 5 : 2));
    TRY(number(f, m, "MET-008", 0, 4, VQM_FORMAT, &id));
    t->dtype = VQM_F32;
    switch (s->source) {
        case 0: TRY(float_dtype(f, m, &t->dtype)); break;
        case 1:
            TRY(whole(f, m, "CBK-005", -(1 << 23), 1 << 23, &s->zero));
            NEED(s->dim == 1, VQM_FORMAT, "CBK-005");
            break;
        case 2: TRY(shared_chunk(f, m, &f->books, "BOK-001", &s->book)); break;
        default: TRY(plan_floats(f, m, s));
    }
    TRY(small(f, m, "CBK-004", 0, 0, VQM_UNSUPPORTED, &choice));
    n_subvectors = ceil_div(p->n_columns, s->dim);
    TRY(group_size(f, m, p->n_rows, &t->rows));
    TRY(group_size(f, m, n_subvectors, &t->columns));
    plan_groups(t, p->n_rows, n_subvectors, s->source == 1 ? 1 : (uint64_t)s->entries * s->dim);
    if (s->source == 4) NEED(t->n_groups == 1, VQM_FORMAT, "CBK-009");
    if (s->book) {
        NEED(s->book->dim == s->dim && s->book->entries == s->entries, VQM_FORMAT, "CBK-006");
        NEED(s->book->groups == t->n_groups, VQM_FORMAT, "CBK-006");
        t->dtype = s->book->dtype;
    }
    TRY(plan_scale(f, m, &s->has_scale, &s->scale));
    TRY(plan_codes(f, m, s->entries, &s->codes));
    if (s->source < 2) TRY(add_resident(f, t->nbytes));
    if (s->has_scale) TRY(add_resident(f, s->scale.nbytes));
    p->per_block += s->codes.n_planes ? s->codes.n_planes : 1;
    return VQM_OK;
}

/* 2^exponent, for exponents of normal numbers */
static float power_of_two(int exponent) {
    return float_of((uint32_t)(exponent + 127) << 23);
}

/* 9.3: a small floating-point number. It is exact. */
static float float_code(const codebook_stage *s, uint32_t code) {
    const uint32_t fraction = code & ((1u << s->fraction_bits) - 1);
    const uint32_t exponent = code >> s->fraction_bits & ((1u << s->exponent_bits) - 1);
    const int is_negative = s->is_signed && code >> (s->fraction_bits + s->exponent_bits);
    const uint32_t n = exponent ? fraction + (1u << s->fraction_bits) : fraction;
    const float value = (float)n * power_of_two(s->exponent + (exponent ? (int)exponent - 1 : 0));
    return is_negative ? -value : value;
}

/* The largest of |0 - zero| and |entries - 1 - zero| */
static float largest_step(const codebook_stage *s) {
    const int32_t low = s->zero < 0 ? -s->zero : s->zero, last = (int32_t)s->entries - 1 - s->zero;
    const int32_t high = last < 0 ? -last : last;
    return (float)(low > high ? low : high);
}

static vqm_status load_codebook(vqm *f, codebook_stage *s, float *bound) {
    float most = 0, scale = 0;
    if (s->source < 2) TRY(load_grid(f, &s->table, &most));
    if (s->book) {
        TRY(need_section(f, s->book));
        s->table.values = s->book->values;
        if (!f->pretends)
            TRY(largest_of(f, s->book->dtype, s->book->values, book_nbytes(s->book) / float_nbytes(s->book->dtype),
                           "BOK-002", &most));
    }
    if (s->source == 1) most = largest_step(s) * most;
    if (s->source == 4) most = float_code(s, (1u << (s->exponent_bits + s->fraction_bits)) - 1);
    NEED(is_finite(most), VQM_FORMAT, "VAL-002");
    if (s->has_scale) TRY(load_grid(f, &s->scale, &scale));
    *bound = s->has_scale ? scale * most : most;
    return VQM_OK;
}

static vqm_status codebook_block(vqm *f, const codebook_stage *s, const vqm_block *b, int adds, uint8_t *values) {
    const uint64_t n_codes = b->n_rows * ceil_div(b->n_columns, s->dim);
    const grid *const t = &s->table;
    group_walk book, scale = {NULL, 0, 0, 0, 0};
    code_reader reader;
    uint32_t i, j, k;
    TRY(read_codes(f, &s->codes, n_codes, &reader));
    if (f->pretends) return VQM_OK;
    for (i = 0; i < b->n_rows; i++) {
        walk_to(&book, t, b->row + i, b->column / s->dim, 0);
        if (s->has_scale) walk_to(&scale, &s->scale, b->row + i, b->column, 1);
        for (j = 0; j < b->n_columns; j += s->dim, walk_on(&book)) {
            const uint32_t code = next_code(&reader);
            const uint32_t n = b->n_columns - j < s->dim ? b->n_columns - j : s->dim; /* 9.1: the rest is padding */
            const uint64_t at = (book.index * s->entries + code) * s->dim;
            for (k = 0; k < n; k++, values += 4) {
                float v;
                switch (s->source) {
                    case 1: v = (float)((int32_t)code - s->zero) * value_at(t->dtype, t->values, book.index); break;
                    case 4: v = float_code(s, code); break;
                    default: v = value_at(t->dtype, t->values, at + k);
                }
                if (s->has_scale) {
                    v = scale.value * v;
                    walk_on(&scale);
                }
                put_value(values, v, adds);
            }
        }
    }
    return codes_are_right(f, &reader);
}

/* ---- SPEC 10: codes ---- */

static vqm_status plan_codes(vqm *f, const uint8_t **m, uint32_t entries, codes *c) {
    uint32_t product = 1, i, j;
    vqm_value v;
    c->entries = entries;
    while ((entries - 1) >> c->width) c->width++;
    TRY(value_of(f, m, VQM_ARRAY, &v));
    NEED(v.n <= 3, VQM_FORMAT, "COD-004");
    c->n_planes = (unsigned)v.n;
    for (i = 0; i < c->n_planes; i++) {
        TRY(fields(f, m, 2));
        TRY(small(f, m, "COD-003", 2, 256, VQM_FORMAT, &c->base[i]));
        TRY(small(f, m, "COD-003", 1, 8, VQM_FORMAT, &c->per_byte[i]));
        for (c->limit[i] = 1, j = 0; j < c->per_byte[i]; j++) {
            c->limit[i] *= c->base[i];
            NEED(c->limit[i] <= 256, VQM_FORMAT, "COD-003");
        }
        NEED(product < entries, VQM_FORMAT, "COD-004");
        product *= c->base[i]; /* below 2^24 */
    }
    NEED(!c->n_planes || product >= entries, VQM_FORMAT, "COD-004");
    return VQM_OK;
}

/* Plain size of plane i, or of dense codes */
static uint64_t codes_nbytes(const codes *c, unsigned i, uint64_t n) {
    return c->n_planes ? ceil_div(n, c->per_byte[i]) : (n * c->width + 7) / 8;
}

static vqm_status read_codes(vqm *f, const codes *c, uint64_t n, code_reader *r) {
    unsigned i;
    memset(r, 0, sizeof *r);
    r->form = c;
    for (i = 0; i < (c->n_planes ? c->n_planes : 1); i++)
        TRY(section(f, codes_nbytes(c, i, n), HIGH, NULL, &r->at[i]));
    return VQM_OK;
}

/* A code that is none (COD-001, COD-005) is remembered, and 0 takes its place. */
static uint32_t next_code(code_reader *r) {
    const codes *const c = r->form;
    uint32_t code = 0, unit = 1;
    unsigned i;
    if (!c->n_planes) {
        for (; r->n_bits < c->width; r->n_bits += 8) r->bits |= (uint32_t)*r->at[0]++ << r->n_bits;
        code = r->bits & ((1u << c->width) - 1);
        r->bits >>= c->width;
        r->n_bits -= c->width;
    }
    for (i = 0; i < c->n_planes; i++) {
        if (!r->left[i]) {
            r->is_bad |= r->byte[i] != 0; /* of the byte before: it was base^per_byte or more */
            r->byte[i] = *r->at[i]++;
            r->left[i] = c->per_byte[i];
        }
        if (--r->left[i] == 0 && c->per_byte[i] == 1) {
            r->is_bad |= r->byte[i] >= c->base[i];
            code += unit * r->byte[i];
            r->byte[i] = 0;
        } else {
            code += unit * (r->byte[i] % c->base[i]);
            r->byte[i] /= c->base[i];
        }
        unit *= c->base[i];
    }
    if (code < c->entries) return code;
    r->is_bad = 1;
    return 0;
}

/* COD-001, COD-002, COD-005, after the last code: of the last byte nothing may be left either. */
static vqm_status codes_are_right(vqm *f, const code_reader *r) {
    NEED(!r->is_bad, VQM_FORMAT, "COD-001");
    NEED(!r->bits, VQM_FORMAT, "COD-002");
    NEED(!(r->byte[0] | r->byte[1] | r->byte[2]), VQM_FORMAT, "COD-005");
    return VQM_OK;
}

/* ---- SPEC 11: low-rank stage ---- */

static vqm_status plan_factor(vqm *f, const uint8_t **m, codes *c) {
    uint32_t entries;
    TRY(fields(f, m, 2));
    TRY(small(f, m, "LOW-001", 2, 65535, VQM_FORMAT, &entries));
    return plan_codes(f, m, entries, c);
}

/* Scales along one axis: a grid of one row */
static vqm_status plan_axis_scale(vqm *f, const uint8_t **m, uint64_t axis, grid *g) {
    TRY(fields(f, m, 2));
    TRY(float_dtype(f, m, &g->dtype));
    TRY(group_size(f, m, axis, &g->columns));
    g->rows = 1;
    plan_groups(g, 1, axis, 1);
    return add_resident(f, g->nbytes);
}

static vqm_status plan_low_rank(vqm *f, const uint8_t **m, low_rank_stage *s) {
    plan *p = &f->plan;
    uint64_t id, n;
    unsigned i;
    TRY(fields(f, m, 6));
    TRY(number(f, m, "MET-008", 0, 5, VQM_FORMAT, &id));
    TRY(small(f, m, "LOW-001", 1, MAX_RANK, VQM_LIMIT, &s->rank));
    NEED(s->rank <= p->n_rows && s->rank <= p->n_columns, VQM_FORMAT, "LOW-001");
    n = capped_product(s->rank, p->n_columns);
    NEED(n <= MAX_FACTOR, VQM_LIMIT, "LOW-001");
    NEED(p->block_columns == p->n_columns, VQM_FORMAT, "LOW-002");
    TRY(plan_factor(f, m, &s->left));
    TRY(plan_factor(f, m, &s->right));
    TRY(plan_axis_scale(f, m, p->n_rows, &s->row_scale));
    TRY(plan_axis_scale(f, m, p->n_columns, &s->column_scale));
    for (i = 0; i < (s->right.n_planes ? s->right.n_planes : 1); i++)
        TRY(add_resident(f, codes_nbytes(&s->right, i, n)));
    p->per_block += s->left.n_planes ? s->left.n_planes : 1;
    return VQM_OK;
}

static vqm_status load_low_rank(vqm *f, low_rank_stage *s, float *bound) {
    const size_t n = (size_t)s->rank * (size_t)f->plan.n_columns;
    const int32_t half_u = (int32_t)(s->left.entries / 2), half_v = (int32_t)(s->right.entries / 2);
    float a, b, product;
    uint8_t *space;
    code_reader reader;
    size_t i;
    mark m;
    TRY(load_grid(f, &s->row_scale, &a));
    TRY(load_grid(f, &s->column_scale, &b));
    product = (float)((int64_t)s->rank * half_u * half_v);
    product = product * a;
    NEED(is_finite(product), VQM_FORMAT, "VAL-002");
    *bound = product * b;
    TRY(take(f, HIGH, 2 * n, &space));
    m = mark_of(f);
    TRY(read_codes(f, &s->right, n, &reader));
    if (!f->pretends) {
        s->v = (int16_t *)(void *)space;
        for (i = 0; i < n; i++) s->v[i] = (int16_t)((int32_t)next_code(&reader) - half_v);
        TRY(codes_are_right(f, &reader));
    }
    give_back(f, m);
    return VQM_OK;
}

enum { SUMS = 64 }; /* of so many columns are computed together */

/* Sums of products; they have 46 bits, but mostly fit in 32. */
static void add_products(const low_rank_stage *s, const int16_t *u, const int16_t *v, size_t n_columns, size_t n,
                         int64_t *sums) {
    int32_t short_sums[SUMS] = {0};
    size_t k, c;
    if ((uint64_t)s->rank * (s->left.entries / 2) * (s->right.entries / 2) > INT32_MAX) {
        for (c = 0; c < n; c++) sums[c] = 0;
        for (k = 0; k < s->rank; k++, v += n_columns)
            for (c = 0; c < n; c++) sums[c] += (int32_t)u[k] * v[c];
        return;
    }
    for (k = 0; k < s->rank; k++, v += n_columns)
        for (c = 0; c < n; c++) short_sums[c] += (int32_t)u[k] * v[c];
    for (c = 0; c < n; c++) sums[c] = short_sums[c];
}

static vqm_status low_rank_block(vqm *f, const low_rank_stage *s, const vqm_block *b, int adds, uint8_t *values) {
    const size_t n_columns = b->n_columns;
    const int32_t half_u = (int32_t)(s->left.entries / 2);
    code_reader reader;
    group_walk scale;
    uint8_t *space;
    int16_t *u;
    size_t i, j, k, c;
    TRY(take(f, HIGH, 2 * (uint64_t)s->rank, &space));
    TRY(read_codes(f, &s->left, (uint64_t)b->n_rows * s->rank, &reader));
    if (f->pretends) return VQM_OK;
    u = (int16_t *)(void *)space;
    for (i = 0; i < b->n_rows; i++) {
        const grid *const g = &s->row_scale;
        const float a = value_at(g->dtype, g->values, (b->row + i) / g->columns);
        for (k = 0; k < s->rank; k++) u[k] = (int16_t)((int32_t)next_code(&reader) - half_u);
        walk_to(&scale, &s->column_scale, 0, 0, 1);
        for (j = 0; j < n_columns; j += SUMS) {
            const size_t n = n_columns - j < SUMS ? n_columns - j : SUMS;
            int64_t sums[SUMS];
            add_products(s, u, s->v + j, n_columns, n, sums);
            for (c = 0; c < n; c++, values += 4, walk_on(&scale)) {
                float value = (float)sums[c];
                value = value * a;
                value = value * scale.value;
                put_value(values, value, adds);
            }
        }
    }
    return codes_are_right(f, &reader);
}

/* ---- SPEC 12: trellis stage ---- */

static vqm_status plan_trellis(vqm *f, const uint8_t **m, trellis_stage *s) {
    plan *p = &f->plan;
    uint64_t id, n_tiles, n_table;
    TRY(fields(f, m, 8));
    TRY(number(f, m, "MET-008", 0, 5, VQM_FORMAT, &id));
    TRY(first_id(f, *m, &id));
    NEED(id == 0 || id == 1 || id == 5, VQM_UNSUPPORTED, "CBK-007");
    s->source = (uint32_t)id;
    TRY(fields(f, m, id == 5 ? 3 : 2));
    TRY(number(f, m, "MET-008", 0, 5, VQM_FORMAT, &id));
    s->table.dtype = VQM_F32;
    if (s->source) TRY(whole(f, m, "TRL-005", -(1 << 22), 1 << 22, &s->zero));
    else TRY(float_dtype(f, m, &s->table.dtype));
    if (s->source == 5) {
        TRY(small(f, m, "TRL-006", 2, MAX_TRANSFORM, VQM_LIMIT, &s->size));
        NEED(p->n_rows % s->size == 0, VQM_FORMAT, "TRL-006");
        NEED(p->block_rows % s->size == 0, VQM_FORMAT, "TRL-006");
    }
    s->n_books = is_nil(m) ? 1 : 2;
    if (s->n_books == 2) {
        TRY(fields(f, m, 2));
        TRY(small(f, m, "TRL-003", 0, 511, VQM_FORMAT, &s->feedback));
        TRY(small(f, m, "TRL-003", 0, 511, VQM_FORMAT, &s->forward));
    }
    TRY(plan_scale(f, m, &s->has_scale, &s->scale));
    TRY(small(f, m, "TRL-004", 0, 3, VQM_UNSUPPORTED, &s->classes));
    TRY(shared_chunk(f, m, &f->freqs, "FRQ-004", &s->freq));
    TRY(small(f, m, "TRL-004", 0, UINT32_MAX, VQM_FORMAT, &s->first));
    NEED((uint64_t)s->first + s->n_books <= s->freq->tables, VQM_FORMAT, "TRL-004"); /* for K = 0 */
    TRY(fields(f, m, 2));
    TRY(number(f, m, "TRL-001", 1, p->block_rows, VQM_FORMAT, &s->tile_rows));
    TRY(number(f, m, "TRL-001", 1, p->block_columns, VQM_FORMAT, &s->tile_columns));
    n_tiles = ceil_div(p->block_rows, s->tile_rows) * ceil_div(p->block_columns, s->tile_columns);
    NEED(s->tile_rows * s->tile_columns <= 64 * n_tiles, VQM_FORMAT, "TRL-002");

    n_table = s->source ? 1 : (uint64_t)s->n_books * s->freq->entries;
    s->table.nbytes = n_table * float_nbytes(s->table.dtype);
    TRY(add_resident(f, s->table.nbytes + s->size * s->size));
    if (s->has_scale) TRY(add_resident(f, s->scale.nbytes));
    if (s->classes & 1) TRY(add_resident(f, p->n_rows));
    if (s->classes & 2) TRY(add_resident(f, p->n_columns));
    p->per_block += 1;
    return VQM_OK;
}

/* 12.4 and 12.5: the largest integer that a code stands for; with a transform, times the largest sum of a column */
static float largest_integer(const trellis_stage *s) {
    const int64_t b = s->n_books, low = b * s->zero, high = b * ((int64_t)s->freq->entries - 1 - s->zero) + b - 1;
    const int64_t n = (low < 0 ? -low : low) > (high < 0 ? -high : high) ? (low < 0 ? -low : low)
                                                                          : (high < 0 ? -high : high);
    int64_t most = s->source == 5 ? 0 : 1;
    uint32_t k, t;
    for (t = 0; t < s->size; t++) {
        int64_t sum = 0;
        for (k = 0; k < s->size; k++) {
            const int q = (int8_t)s->matrix[k * s->size + t];
            sum += q < 0 ? -q : q;
        }
        if (sum > most) most = sum;
    }
    return (float)(n * most);
}

static vqm_status load_classes(vqm *f, uint64_t n, const uint8_t **classes, uint32_t *most) {
    uint64_t i;
    TRY(section(f, n, HIGH, NULL, classes));
    *most = 0;
    for (i = 0; i < n && !f->pretends; i++)
        if ((*classes)[i] > *most) *most = (*classes)[i];
    return VQM_OK;
}

static vqm_status load_trellis(vqm *f, trellis_stage *s, float *bound) {
    const plan *p = &f->plan;
    grid *const t = &s->table;
    float most = 0, scale = 0;
    uint32_t row_most = 0, column_most = 0;
    TRY(need_section(f, s->freq));
    TRY(section(f, t->nbytes + s->size * s->size, HIGH, NULL, &t->values));
    if (!f->pretends) {
        TRY(largest_of(f, t->dtype, t->values, t->nbytes / float_nbytes(t->dtype), "CBK-008", &most));
        s->matrix = t->values + t->nbytes;
        if (s->source) most = largest_integer(s) * most;
        NEED(is_finite(most), VQM_FORMAT, "VAL-002");
    }
    if (s->has_scale) TRY(load_grid(f, &s->scale, &scale));
    *bound = s->has_scale ? scale * most : most;
    if (s->classes & 1) TRY(load_classes(f, p->n_rows, &s->row_classes, &row_most));
    if (s->classes & 2) TRY(load_classes(f, p->n_columns, &s->column_classes, &column_most));
    NEED(s->first + (uint64_t)(row_most + column_most + 1) * s->n_books <= s->freq->tables, VQM_FORMAT, "TRL-004");
    return VQM_OK;
}

/* 12.3: the codes of a block. `symbols` gets B · code + q of each element, `size` bytes each (2 or 4). */
static vqm_status read_symbols(vqm *f, const trellis_stage *s, const vqm_block *b, const uint8_t *payload, size_t n_payload,
                               uint32_t *x, uint8_t *state, size_t size, uint8_t *symbols) {
    const chunk *const freq = s->freq;
    const uint32_t precision = freq->precision, mask = (1u << precision) - 1, n_books = s->n_books;
    const uint32_t shift = precision - (uint32_t)freq->guide_bits, feedback = s->feedback >> 1, forward = s->forward >> 1;
    const size_t starts_size = freq->entries + 1, guide_size = ((size_t)1 << freq->guide_bits) + 1;
    const uint32_t tile_rows = (uint32_t)s->tile_rows, tile_columns = (uint32_t)s->tile_columns;
    const size_t n_tiles = (size_t)(ceil_div(b->n_rows, tile_rows) * ceil_div(b->n_columns, tile_columns));
    const uint8_t *word = payload + 4 * n_tiles, *const end = payload + n_payload;
    uint32_t i, j, row, column;
    size_t t;
    for (t = 0; t < n_tiles; t++) {
        x[t] = u32_at(payload + 4 * t);
        state[t] = 0;
        NEED(x[t] >= 1u << 16, VQM_FORMAT, "ANS-001");
    }
    for (i = 0; i < tile_rows && i < b->n_rows; i++) {
        for (j = 0; j < tile_columns && j < b->n_columns; j++) {
            t = 0;
            for (row = i; row < b->n_rows; row += tile_rows) {
                const uint32_t row_class = s->row_classes ? s->row_classes[b->row + row] : 0;
                const size_t tiles_below = (size_t)ceil_div(b->n_columns, tile_columns);
                uint8_t *to = symbols + size * ((size_t)row * b->n_columns + j);
                const size_t t_of_row = t;
                for (column = j; column < b->n_columns; column += tile_columns, t++, to += size * tile_columns) {
                    const uint32_t q = state[t] & (n_books - 1), slot = x[t] & mask;
                    const uint32_t k = row_class + (s->column_classes ? s->column_classes[b->column + column] : 0);
                    const size_t table = s->first + (size_t)k * n_books + q;
                    const uint16_t *const starts = freq->starts + table * starts_size;
                    const uint16_t *const guide = freq->guides + table * guide_size + (slot >> shift);
                    uint32_t code = guide[0], last = guide[1]; /* the last code that starts at the slot or before */
                    while (code < last) {
                        const uint32_t middle = (code + last + 1) / 2;
                        if (starts[middle] <= slot) code = middle;
                        else last = middle - 1;
                    }
                    x[t] = (uint32_t)(starts[code + 1] - starts[code]) * (x[t] >> precision) + slot - starts[code];
                    if (x[t] < 1u << 16) {
                        NEED(word < end, VQM_FORMAT, "ANS-002");
                        x[t] = x[t] << 16 | u16_at(word);
                        word += 2;
                    }
                    state[t] = (uint8_t)(state[t] >> 1 ^ (q ? feedback : 0) ^ (code & 1 ? forward : 0));
                    if (size == 2) put16(to, n_books * code + q);
                    else put32(to, n_books * code + q);
                }
                t = t_of_row + tiles_below; /* the last tile of a row may lack column j */
            }
        }
    }
    NEED(word == end, VQM_FORMAT, "ANS-003");
    for (t = 0; t < n_tiles; t++) NEED(x[t] == 1u << 16, VQM_FORMAT, "ANS-003");
    return VQM_OK;
}

/* 12.5: the coefficients of the groups of a block become values without scale, in place. */
static void transform(const trellis_stage *s, const vqm_block *b, uint8_t *symbols) {
    const int32_t offset = (int32_t)s->n_books * s->zero;
    const float step = value_at(VQM_F32, s->table.values, 0);
    const size_t size = s->size, n_columns = b->n_columns;
    int32_t n[MAX_TRANSFORM];
    size_t g, c, k, t;
    for (g = 0; g < b->n_rows; g += size) {
        for (c = 0; c < n_columns; c++) {
            uint8_t *const group = symbols + 4 * (g * n_columns + c);
            for (k = 0; k < size; k++) n[k] = (int32_t)u32_at(group + 4 * k * n_columns) - offset;
            for (t = 0; t < size; t++) {
                int64_t sum = 0;
                for (k = 0; k < size; k++) sum += (int64_t)n[k] * (int8_t)s->matrix[k * size + t];
                put32(group + 4 * t * n_columns, bits_of((float)sum * step));
            }
        }
    }
}

static vqm_status trellis_block(vqm *f, const trellis_stage *s, const vqm_block *b, int adds, uint8_t *values) {
    const grid *const table = &s->table;
    const size_t n = (size_t)b->n_rows * b->n_columns;
    const uint64_t n_tiles = ceil_div(b->n_rows, s->tile_rows) * ceil_div(b->n_columns, s->tile_columns);
    const int32_t offset = (int32_t)s->n_books * s->zero;
    /* The first stage has its symbols where its values come. They are below 2^15; a transform makes values of them */
    const size_t size = adds && s->source != 5 ? 2 : 4;
    uint8_t *x, *state, *symbols = values;
    const uint8_t *payload;
    group_walk scale = {NULL, 0, 0, 0, 0};
    size_t n_payload;
    float step = 1;
    uint32_t i, j;
    if (adds) TRY(take(f, HIGH, size * n, &symbols));
    TRY(take(f, HIGH, 4 * n_tiles, &x));
    TRY(take(f, HIGH, n_tiles, &state));
    TRY(payload_section(f, 4 * n_tiles, 4 * n_tiles + 2 * n, &payload, &n_payload));
    if (f->pretends) return VQM_OK;
    TRY(read_symbols(f, s, b, payload, n_payload, (uint32_t *)(void *)x, state, size, symbols));
    if (s->source == 5) transform(s, b, symbols);
    if (s->source) step = value_at(VQM_F32, table->values, 0);
    for (i = 0; i < b->n_rows; i++) {
        if (s->has_scale) walk_to(&scale, &s->scale, b->row + i, b->column, 1);
        for (j = 0; j < b->n_columns; j++, symbols += size, values += 4) {
            const uint32_t symbol = size == 2 ? u16_at(symbols) : u32_at(symbols);
            float v;
            switch (s->source) {
                case 0: {
                    const uint32_t code = symbol / s->n_books, q = symbol % s->n_books;
                    v = value_at(table->dtype, table->values, (uint64_t)q * s->freq->entries + code);
                    break;
                }
                case 1: v = (float)((int32_t)symbol - offset) * step; break;
                default: v = float_of(symbol);
            }
            if (s->has_scale) {
                v = scale.value * v;
                walk_on(&scale);
            }
            put_value(values, v, adds);
        }
    }
    return VQM_OK;
}

/* ---- SPEC 13: index ---- */

/* MET-009: n unsigned integers of the smallest width that holds them. */
static vqm_status open_column(vqm *f, const uint8_t **m, uint64_t n, column *c) {
    uint64_t i, most = 0;
    vqm_value v;
    TRY(value_of(f, m, VQM_BIN, &v));
    c->bytes = v.bytes;
    c->n = n;
    c->width = 0;
    if (!n) {
        NEED(!v.n, VQM_FORMAT, "MET-009");
        return VQM_OK;
    }
    NEED(v.n == n || v.n / 2 == n || v.n / 4 == n || v.n / 8 == n, VQM_FORMAT, "MET-009");
    NEED(v.n % n == 0, VQM_FORMAT, "MET-009");
    c->width = (unsigned)(v.n / n);
    NEED(c->width == 1 || c->width == 2 || c->width == 4 || c->width == 8, VQM_FORMAT, "MET-009");
    for (i = 0; i < n; i++) most |= column_at(c, i);
    NEED(c->width == 1 || most >> (4 * c->width), VQM_FORMAT, "MET-009");
    return VQM_OK;
}

static uint64_t column_at(const column *c, uint64_t i) {
    const uint8_t *const p = c->bytes + (size_t)i * c->width;
    switch (c->width) {
        case 1: return *p;
        case 2: return u16_at(p);
        case 4: return u32_at(p);
        default: return u64_at(p);
    }
}

/* What INDX holds, as it stands there. */
typedef struct {
    vqm_value digest, metadata, types, names, dtypes, ranks;
    column lengths, dims, chunks, targets;
    int has_targets;
} index_fields;

static vqm_status read_index(vqm *f, const uint8_t *m, index_fields *x) {
    uint64_t n_dims = 0, i;
    const uint8_t *columns, *targets;
    vqm_value v;
    TRY(fields(f, &m, 10));
    TRY(value_of(f, &m, VQM_BIN, &x->digest));
    NEED(x->digest.n == 32, VQM_FORMAT, "MET-008");
    TRY(value_of(f, &m, VQM_BIN, &x->metadata));
    TRY(value_of(f, &m, VQM_BIN, &x->types));
    NEED(x->types.n % 4 == 0, VQM_FORMAT, "IDX-001");
    TRY(open_column(f, &m, x->types.n / 4, &x->lengths));
    TRY(value_of(f, &m, VQM_BIN, &x->names));
    TRY(value_of(f, &m, VQM_BIN, &x->dtypes));
    TRY(value_of(f, &m, VQM_BIN, &x->ranks));
    NEED(x->ranks.n == x->dtypes.n, VQM_FORMAT, "IDX-001");
    for (i = 0; i < x->ranks.n; i++) {
        NEED(x->ranks.bytes[i] <= MAX_AXES || !f->by_index, VQM_LIMIT, "TEN-003");
        n_dims += x->ranks.bytes[i];
    }
    columns = m;
    TRY(open_column(f, &columns, n_dims, &x->dims));
    TRY(open_column(f, &columns, x->dtypes.n, &x->chunks));
    targets = columns;
    TRY(value_of(f, &targets, VQM_BIN, &v));
    x->has_targets = v.n > 0;
    return open_column(f, &columns, x->has_targets ? x->dtypes.n : 0, &x->targets);
}

/* 15.1, step 11: IDX-001 and IDX-002 of a file that has been read up to here. */
static vqm_status check_index(vqm *f, const uint8_t *m) {
    const int has_copy = f->meta_nbytes <= 65536;
    const uint8_t *name;
    uint8_t digest[32];
    uint64_t i, n_dims = 0, n_names = 0;
    int has_aliases = 0;
    index_fields x;
    vqm_sha256 sha;
    const chunk *c;
    const entry *e;
    TRY(read_index(f, m, &x));
    vqm_sha256_start(&sha);
    vqm_sha256_add(&sha, x.metadata.bytes, (size_t)x.metadata.n);
    vqm_sha256_end(&sha, digest);
    NEED(x.metadata.n == (has_copy ? f->meta_nbytes : 0), VQM_FORMAT, "IDX-001");
    NEED(!has_copy || !memcmp(digest, f->meta_digest, 32), VQM_FORMAT, "IDX-001");
    NEED(x.lengths.n == f->n_chunks - 1, VQM_FORMAT, "IDX-001");
    for (c = f->first_chunk, i = 0; c != f->last_chunk; c = c->next, i++) {
        NEED(is_type(c->type, (const char *)x.types.bytes + 4 * i), VQM_FORMAT, "IDX-001");
        NEED(c->nbytes == column_at(&x.lengths, i), VQM_FORMAT, "IDX-001");
    }
    NEED(x.dtypes.n == f->n_tensors, VQM_FORMAT, "IDX-001");
    for (e = f->first; e; e = e->next) {
        n_names += e->tensor.name_nbytes + 1;
        n_dims += e->tensor.rank;
        if (e->tensor.target) has_aliases = 1;
    }
    NEED(x.names.n == n_names && x.has_targets == has_aliases, VQM_FORMAT, "IDX-001");
    for (e = f->first, i = 0; e; e = e->next, i++)
        NEED(x.dtypes.bytes[i] == e->tensor.dtype && x.ranks.bytes[i] == e->tensor.rank, VQM_FORMAT, "IDX-001");
    name = x.names.bytes;
    for (e = f->first, i = 0, n_dims = 0; e; e = e->next, i++) {
        const vqm_tensor *t = &e->tensor;
        unsigned k;
        NEED(!memcmp(name, t->name, t->name_nbytes + 1), VQM_FORMAT, "IDX-001"); /* the byte 0 too */
        name += t->name_nbytes + 1;
        for (k = 0; k < t->rank; k++)
            NEED(column_at(&x.dims, n_dims++) == t->dims[k], VQM_FORMAT, "IDX-001");
        NEED(column_at(&x.chunks, i) == e->chunk->place, VQM_FORMAT, "IDX-001");
        if (has_aliases)
            NEED(column_at(&x.targets, i) == (t->target ? 1 + (uint64_t)t->target->number : 0), VQM_FORMAT, "IDX-001");
    }
    if (f->options.test_digest) {
        vqm_sha256_end(&f->sha_before, digest);
        NEED(!memcmp(digest, x.digest.bytes, 32), VQM_CHECKSUM, "IDX-002");
    }
    if (f->measures) { /* take_index takes this too */
        uint8_t *entries;
        TRY(take(f, HIGH, f->n_tensors * sizeof(entry *), &entries));
    }
    return VQM_OK;
}

/* The chunks of the file, by the index */
static vqm_status list_chunks(vqm *f, const index_fields *x) {
    uint64_t offset = 16, i;
    uint32_t n_books = 0, n_freqs = 0;
    NEED(x->lengths.n > 0, VQM_FORMAT, "IDX-001");
    NEED(x->lengths.n < MAX_CHUNKS, VQM_LIMIT, "LIM-001");
    for (i = 0; i < x->lengths.n; i++) {
        const uint64_t nbytes = column_at(&x->lengths, i);
        const uint8_t *const type = x->types.bytes + 4 * i;
        chunk *c;
        TRY(add_chunk(f, &c));
        memcpy(c->type, type, 4);
        NEED(is_type(type, "META") == (i == 0) && !is_type(type, "INDX"), VQM_FORMAT, "FIL-001");
        c->offset = offset;
        c->nbytes = nbytes;
        NEED(nbytes >= 28 && nbytes <= f->index_chunk.offset - offset, VQM_FORMAT, "IDX-001");
        offset += nbytes;
        NEED(is_letter(type[0]) && is_letter(type[1]) && is_letter(type[2]) && is_letter(type[3]), VQM_FORMAT, "CHK-002");
        if (is_type(type, "LAYR")) {
            c->number = f->n_layers++;
        } else if (is_type(type, "BOOK")) {
            c->number = n_books++;
            TRY(add_to_list(f, &f->books, c));
        } else if (is_type(type, "FREQ")) {
            c->number = n_freqs++;
            TRY(add_to_list(f, &f->freqs, c));
        } else {
            NEED(type[0] >= 'a' || i == 0, VQM_UNSUPPORTED, "CHK-003");
        }
    }
    NEED(offset == f->index_chunk.offset, VQM_FORMAT, "IDX-001");
    return VQM_OK;
}

/* 15.2, step 4: the lists of chunks and tensors. What a record says is compared when it is read (IDX-003). */
static vqm_status take_index(vqm *f, const uint8_t *m) {
    const uint8_t *name, *names_end;
    uint64_t i, n_dims = 0, n_elements;
    index_fields x;
    entry **entries;
    uint8_t *space;
    chunk *c;
    int has_aliases = 0;
    TRY(read_index(f, m, &x));
    TRY(list_chunks(f, &x));
    NEED(x.dtypes.n <= MAX_TENSORS, VQM_LIMIT, "LIM-001");
    TRY(take(f, HIGH, x.dtypes.n * sizeof(entry *), &space));
    entries = (entry **)(void *)space;
    name = x.names.bytes;
    names_end = name + (size_t)x.names.n;
    c = f->first_chunk;
    for (i = 0; i < x.dtypes.n; i++) {
        const unsigned rank = x.ranks.bytes[i], dtype = x.dtypes.bytes[i];
        const uint64_t target = x.has_targets ? column_at(&x.targets, i) : 0, place = column_at(&x.chunks, i);
        const uint8_t *end = (const uint8_t *)memchr(name, 0, (size_t)(names_end - name));
        uint64_t dims[MAX_AXES];
        unsigned k;
        entry *e;
        NEED(end, VQM_FORMAT, "IDX-001");
        NEED(end > name && is_utf8(name, (uint64_t)(end - name)), VQM_FORMAT, "TEN-001");
        NEED(end - name <= MAX_NAME, VQM_LIMIT, "TEN-001");
        NEED(!*find_entry(f, name, (size_t)(end - name)), VQM_FORMAT, "TEN-002");
        NEED(dtype < VQM_N_DTYPES, VQM_UNSUPPORTED, "TEN-006");
        for (k = 0; k < rank; k++) dims[k] = column_at(&x.dims, n_dims++);
        TRY(add_entry(f, name, (size_t)(end - name), target ? 0 : rank, &e));
        entries[i] = e;
        e->tensor.dtype = (vqm_dtype)dtype;
        TRY(take_shape(f, dims, rank, dtype, &n_elements, &e->tensor.nbytes));
        if (target) {
            const vqm_tensor *t;
            NEED(target <= i && !entries[target - 1]->tensor.target, VQM_FORMAT, "IDX-001");
            t = &entries[target - 1]->tensor;
            NEED((unsigned)t->dtype == dtype && t->rank == rank, VQM_FORMAT, "IDX-001");
            NEED(!rank || !memcmp(t->dims, dims, rank * sizeof *dims), VQM_FORMAT, "IDX-001");
            e->tensor.target = t;
            has_aliases = 1;
            e->tensor.rank = rank;
            e->tensor.dims = t->dims; /* vqm_need counts them once */
        } else if (rank) {
            memcpy((uint64_t *)e->tensor.dims, dims, rank * sizeof *dims);
        }
        NEED(place >= c->place && place < x.lengths.n, VQM_FORMAT, "IDX-004");
        while (c->place < place) c = c->next;
        NEED(is_type(c->type, "LAYR"), VQM_FORMAT, "IDX-004");
        e->chunk = c;
        e->tensor.layer = c->number;
        name = end + 1;
    }
    NEED(name == names_end && x.has_targets == has_aliases && x.metadata.n <= 65536, VQM_FORMAT, "IDX-001");
    if (!x.metadata.n) return VQM_OK;
    f->body.meta = x.metadata.bytes;
    f->body.meta_nbytes = (size_t)x.metadata.n;
    TRY(check_meta(f, x.metadata.bytes, (size_t)x.metadata.n));
    return take_meta(f, x.metadata.bytes);
}

/* ---- Primitives: lists ---- */

static vqm_status add_chunk(vqm *f, chunk **added) {
    uint8_t *space;
    TRY(take(f, LOW, sizeof(chunk), &space));
    *added = (chunk *)(void *)space;
    memset(*added, 0, sizeof(chunk));
    (*added)->place = f->n_chunks++;
    if (f->last_chunk) f->last_chunk->next = *added;
    else f->first_chunk = *added;
    f->last_chunk = *added;
    return VQM_OK;
}

static vqm_status add_to_list(vqm *f, chunk_list *list, chunk *c) {
    if (list->n == list->room) {
        const uint32_t room = list->room ? 2 * list->room : 4;
        uint8_t *space;
        TRY(take(f, LOW, room * sizeof(chunk *), &space));
        if (list->n) memcpy(space, list->items, list->n * sizeof(chunk *));
        list->items = (chunk **)(void *)space;
        list->room = room;
    }
    list->items[list->n++] = c;
    return VQM_OK;
}

/* Where the tensor of a name is linked in the trie, or would be. SHA-256 keeps a file from making it deep. */
static entry **find_entry(vqm *f, const uint8_t *name, size_t n) {
    entry **link = &f->root;
    uint8_t digest[32];
    uint64_t hash;
    vqm_sha256 sha;
    vqm_sha256_start(&sha);
    vqm_sha256_add(&sha, name, n);
    vqm_sha256_end(&sha, digest);
    for (hash = u64_at(digest); *link; hash >>= 1) {
        const vqm_tensor *const t = &(*link)->tensor;
        if (t->name_nbytes == n && !memcmp(t->name, name, n)) break;
        link = &(*link)->child[hash & 1];
    }
    return link;
}

static vqm_status add_entry(vqm *f, const uint8_t *name, size_t n, unsigned rank, entry **added) {
    entry *e;
    uint8_t *space, *text;
    TRY(take(f, LOW, sizeof(entry) + rank * sizeof(uint64_t) + n + 1, &space));
    memset(space, 0, sizeof(entry));
    e = *added = (entry *)(void *)space;
    space += sizeof(entry);
    text = space + rank * sizeof(uint64_t);
    memcpy(text, name, n);
    text[n] = 0;
    e->tensor.dims = (uint64_t *)(void *)space;
    e->tensor.rank = rank;
    e->tensor.name = (const char *)text;
    e->tensor.name_nbytes = n;
    e->tensor.number = f->n_tensors++;
    *find_entry(f, name, n) = e;
    if (f->last) f->last->next = e;
    else f->first = e;
    f->last = e;
    return VQM_OK;
}

/* ---- Primitives: the arena ---- */

static void give_back_all(vqm *f) {
    const mark none = {0, 0};
    give_back(f, none);
}

static void note_most(vqm *f) {
    const uint64_t n = f->high + f->pretended_high;
    f->most = max_u64(f->most, n + (f->values_may_be_out ? 0 : f->values_nbytes));
    f->most_by_block = max_u64(f->most_by_block, n + f->values_nbytes);
}

static vqm_status take(vqm *f, int end, uint64_t n, uint8_t **at) {
    const uint64_t rounded = (n + 7) & ~UINT64_C(7);
    const size_t left = f->arena_nbytes - f->low - f->high;
    if (f->pretends) { /* nothing is written there */
        *(end == LOW ? &f->pretended_low : &f->pretended_high) += rounded;
        note_most(f);
        *at = f->arena;
        return VQM_OK;
    }
    f->wanted = max_u64(f->wanted, f->low + f->high + rounded);
    NEED(rounded <= left, VQM_MEMORY, "");
    if (end == LOW) {
        *at = f->arena + f->low;
        f->low += (size_t)rounded;
    } else {
        f->high += (size_t)rounded;
        *at = f->arena + f->arena_nbytes - f->high;
        note_most(f);
    }
    REVEAL(*at, n);
    return VQM_OK;
}

static mark mark_of(const vqm *f) {
    mark m;
    m.high = f->high;
    m.pretended = f->pretended_high;
    return m;
}

static void give_back(vqm *f, mark m) {
    HIDE(f->arena + f->arena_nbytes - f->high, f->high - m.high);
    f->high = m.high;
    f->pretended_high = m.pretended;
}

/* ---- Primitives: the source ---- */

/* Bytes of the file that have come are counted, and hashed for IDX-002. */
static void arrived(vqm *f, const uint8_t *bytes, size_t n) {
    if (f->options.test_digest && !f->by_index) vqm_sha256_add(&f->sha, bytes, n);
    f->offset += n;
}

static vqm_status point(vqm *f, uint64_t n, const uint8_t **bytes) {
    NEED(f->offset <= f->source.nbytes && n <= f->source.nbytes - f->offset, VQM_TRUNCATED, "REA-001");
    *bytes = f->source.memory + (size_t)f->offset;
    arrived(f, *bytes, (size_t)n);
    return VQM_OK;
}

static vqm_status get(vqm *f, void *to, uint64_t n) {
    uint8_t *at = (uint8_t *)to;
    const uint8_t *bytes;
    if (f->source.memory) {
        TRY(point(f, n, &bytes));
        if (n) memcpy(to, bytes, (size_t)n);
        return VQM_OK;
    }
    if (f->must_seek) NEED(!f->source.seek(f->source.user, f->offset), VQM_SOURCE, "");
    f->must_seek = 0;
    while (n) {
        const size_t got = f->source.read(f->source.user, at, (size_t)n);
        NEED(got, VQM_TRUNCATED, "REA-001");
        NEED(got <= n, VQM_SOURCE, "");
        arrived(f, at, got);
        at += got;
        n -= got;
    }
    return VQM_OK;
}

static vqm_status get_or_point(vqm *f, uint64_t n, int end, uint8_t *to, const uint8_t **bytes) {
    if (f->source.memory && !f->pretends) return point(f, n, bytes);
    if (!to && !f->source.memory) TRY(take(f, end, n, &to));
    *bytes = to;
    return f->pretends ? go_to(f, f->offset + n) : get(f, to, n);
}

/* Reads n bytes that nobody keeps. */
static vqm_status pass(vqm *f, uint64_t n, uint32_t *crc, int *is_zero) {
    uint8_t piece[256];
    while (n) {
        const size_t size = n < sizeof piece ? (size_t)n : sizeof piece;
        size_t i;
        TRY(get(f, piece, size));
        if (crc) *crc = crc_of(*crc, piece, size);
        for (i = 0; is_zero && i < size; i++) *is_zero &= !piece[i];
        n -= size;
    }
    return VQM_OK;
}

static vqm_status go_to(vqm *f, uint64_t offset) {
    if (!f->source.memory && !f->source.seek) return pass(f, offset - f->offset, NULL, NULL); /* vqm_need of a pipe */
    NEED(!f->source.nbytes || offset <= f->source.nbytes, VQM_TRUNCATED, "REA-001");
    f->must_seek = 1;
    f->offset = offset;
    return VQM_OK;
}

/* ---- Primitives: checksums ---- */

/* CNV-004, four bits at a time */
static uint32_t crc_of(uint32_t crc, const uint8_t *bytes, size_t n) {
    static const uint32_t table[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
                                       0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                       0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    crc = ~crc;
    while (n--) {
        crc ^= *bytes++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* FIPS 180-4 */
static uint32_t rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static void hash_block(uint32_t *state, const uint8_t *block) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[16], v[8];
    int i;
    memcpy(v, state, sizeof v);
    for (i = 0; i < 64; i++) {
        uint32_t t1, t2;
        if (i < 16) {
            w[i] = (uint32_t)big_endian(block + 4 * i, 4);
        } else {
            const uint32_t a = w[(i + 1) & 15], b = w[(i + 14) & 15];
            w[i & 15] += (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[(i + 9) & 15] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
        }
        t1 = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] +
             w[i & 15];
        t2 = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (i = 0; i < 8; i++) state[i] += v[i];
}

void vqm_sha256_start(vqm_sha256 *sha) {
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(sha->state, first, sizeof first);
    sha->n_bytes = 0;
}

void vqm_sha256_add(vqm_sha256 *sha, const void *data, size_t n) {
    const uint8_t *bytes = (const uint8_t *)data;
    while (n) {
        const size_t at = (size_t)(sha->n_bytes % 64), size = n < 64 - at ? n : 64 - at;
        if (size == 64) {
            hash_block(sha->state, bytes);
        } else {
            memcpy(sha->block + at, bytes, size);
            if (at + size == 64) hash_block(sha->state, sha->block);
        }
        sha->n_bytes += size;
        bytes += size;
        n -= size;
    }
}

void vqm_sha256_end(const vqm_sha256 *sha, uint8_t digest[32]) {
    vqm_sha256 last = *sha;
    uint8_t padding[72] = {0x80};
    const size_t n = 64 - (size_t)((sha->n_bytes + 8) % 64);
    int i;
    for (i = 0; i < 8; i++) padding[n + (size_t)i] = (uint8_t)(sha->n_bytes * 8 >> (56 - 8 * i));
    vqm_sha256_add(&last, padding, n + 8);
    for (i = 0; i < 32; i++) digest[i] = (uint8_t)(last.state[i / 4] >> (24 - 8 * (i % 4)));
}

/* ---- Primitives: numbers ---- */

static uint32_t u16_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t u64_at(const uint8_t *p) {
    return u32_at(p) | (uint64_t)u32_at(p + 4) << 32;
}

static void put16(uint8_t *p, uint32_t n) {
    p[0] = (uint8_t)n;
    p[1] = (uint8_t)(n >> 8);
}

static void put32(uint8_t *p, uint32_t n) {
    p[0] = (uint8_t)n;
    p[1] = (uint8_t)(n >> 8);
    p[2] = (uint8_t)(n >> 16);
    p[3] = (uint8_t)(n >> 24);
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Value i of an array of f32, f16 or bf16, widened exactly. */
static float value_at(unsigned dtype, const uint8_t *bytes, uint64_t i) {
    uint32_t half, sign, exponent, fraction;
    if (dtype == VQM_F32) return float_of(u32_at(bytes + 4 * (size_t)i));
    half = u16_at(bytes + 2 * (size_t)i);
    if (dtype == VQM_BF16) return float_of(half << 16);
    sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return float_of(sign | 0x7F800000 | fraction << 13);
    if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    return float_of(sign | bits_of((float)fraction * 0x1p-24f));
}

static uint64_t ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

/* The product, or UINT64_MAX if it is more. */
static uint64_t capped_product(uint64_t a, uint64_t b) {
    return a && b > UINT64_MAX / a ? UINT64_MAX : a * b;
}
