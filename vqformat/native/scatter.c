/* Putting the values of a block in their places in the tensor (SPEC 7.2). */

#include "scatter.h"

#include <string.h>

#include "instruction_sets.h"
#include "transpose.h"

enum { ROWS = 32, COLUMNS = 32 }; /* of a tile: its cache lines stay in the nearest cache */

/* In tiles, so that both the lines that are read and those that are written are used whole. A tile is copied first:
   lines that are a power of two apart would evict each other. */
#define PUT(type)                                                                                                      \
    static void put_##type(const ScatterBlock *b)                                                                      \
    {                                                                                                                  \
        const type *const values = b->values;                                                                          \
        for (int64_t column = 0; column < b->n_columns; column += COLUMNS)                                             \
            for (int64_t row = 0; row < b->n_rows; row += ROWS) {                                                      \
                const int64_t row_end = row + ROWS < b->n_rows ? row + ROWS : b->n_rows;                               \
                const int64_t column_end = column + COLUMNS < b->n_columns ? column + COLUMNS : b->n_columns;          \
                type tile[ROWS][COLUMNS + 1];                                                                          \
                for (int64_t r = row; r < row_end; r++)                                                                \
                    memcpy(tile[r - row], values + r * b->n_columns + column,                                          \
                           (size_t)(column_end - column) * sizeof(type));                                              \
                for (int64_t c = column; c < column_end; c++) {                                                        \
                    type *const out = (type *)b->out + b->column_places[c];                                            \
                    for (int64_t r = row; r < row_end; r++)                                                            \
                        out[b->row_places[r]] = tile[r - row][c - column];                                             \
                }                                                                                                      \
            }                                                                                                          \
    }

PUT(uint8_t)
PUT(uint16_t)
PUT(uint32_t)
PUT(uint64_t)

/* How many rows there are before one whose place begins a cache line, in the first column, and in those that are whole lines
   from it. From there on lines are written whole. Else, lines of columns that are a power of two apart evict each other when
   they are half written. */
static int64_t rows_before_line(const ScatterBlock *b)
{
    const float *const place = (const float *)b->out + b->row_places[0] + b->column_places[0];
    const uintptr_t past = (uintptr_t)place % sizeof(float[SIDE]);
    const int64_t n = past ? (int64_t)((sizeof(float[SIDE]) - past) / sizeof(float)) : 0;
    return n < b->n_rows ? n : b->n_rows;
}

/* Put the rows ``first`` to ``end`` of a column. */
static void put_part(const ScatterBlock *b, int64_t column, int64_t first, int64_t end)
{
    const float *const values = (const float *)b->values + column;
    float *const out = (float *)b->out + b->row_places[0] + b->column_places[column];
    for (int64_t r = first; r < end; r++)
        memcpy(out + r, values + r * b->n_columns, sizeof *out);
}

/* Values of four bytes, where the next row is the next place. Floats are moved only, so they may be any bits. */
static void put_beside(const ScatterBlock *b, Transpose *transpose)
{
    const float *const values = b->values;
    const int64_t n_columns = b->n_columns, columns = n_columns / SIDE * SIDE, first = rows_before_line(b);
    const int64_t end = first + (b->n_rows - first) / SIDE * SIDE;
    float *const out = (float *)b->out + b->row_places[0];
    for (int64_t column = 0; column < columns; column += SIDE)
        for (int64_t row = first; row < end; row += SIDE) { /* the inner loop: it writes on where it wrote */
            float square[SIDE][SIDE];
            transpose(values + row * n_columns + column, n_columns, square);
            for (int c = 0; c < SIDE; c++)
                memcpy(out + b->column_places[column + c] + row, square[c], sizeof square[c]);
        }
    for (int64_t c = 0; c < n_columns; c++) {
        put_part(b, c, 0, c < columns ? first : b->n_rows);
        put_part(b, c, c < columns ? end : b->n_rows, b->n_rows);
    }
}

/* Values of four bytes, in the order of their places: memory is written from its start to its end, and what is read at
   random is one row. */

static ALWAYS_INLINE void put_one(const ScatterBlock *b, const float *values, float *out, int64_t column)
{
    memcpy(out + b->column_places[column], values + b->columns[column], sizeof *out);
}

static void put_row_scalar(const ScatterBlock *b, const float *values, float *out)
{
    for (int64_t c = 0; c < b->n_columns; c++)
        put_one(b, values, out, c);
}

#ifdef HAS_X86
/* Places of several columns follow each other if the last is as far from the first as their number says. */
#define PUT_ROW(set, target, lanes, gather)                                                                            \
    target static void put_row_##set(const ScatterBlock *b, const float *values, float *out)                           \
    {                                                                                                                  \
        const int64_t *const places = b->column_places;                                                                \
        for (int64_t c = 0; c < b->n_columns; c += lanes) {                                                            \
            if (b->n_columns - c >= lanes && places[c + lanes - 1] - places[c] == lanes - 1)                           \
                gather;                                                                                                \
            else                                                                                                       \
                for (int64_t k = c; k < b->n_columns && k < c + lanes; k++)                                            \
                    put_one(b, values, out, k);                                                                        \
        }                                                                                                              \
    }

PUT_ROW(avx2, TARGET_AVX2, 8,
        _mm256_storeu_ps(out + places[c],
                         _mm256_i32gather_ps(values, _mm256_loadu_si256((const __m256i *)(b->columns + c)), 4)))
PUT_ROW(avx512, TARGET_AVX512, 16,
        _mm512_storeu_ps(out + places[c], _mm512_i32gather_ps(_mm512_loadu_si512(b->columns + c), values, 4)))
static void (*const PUT_ROWS[])(const ScatterBlock *, const float *, float *) = {put_row_scalar, put_row_avx2,
                                                                                  put_row_avx512};
#else
static void (*const PUT_ROWS[])(const ScatterBlock *, const float *, float *) = {put_row_scalar, put_row_scalar,
                                                                                  put_row_scalar};
#endif

int64_t last_place(const int64_t *places, int64_t n)
{
    int64_t last = places ? -1 : n - 1, any = 0;
    for (int64_t i = 0; places && i < n; i++) {
        any |= places[i];
        last = places[i] > last ? places[i] : last;
    }
    return any < 0 ? -1 : last;
}

int are_rows_beside(const int64_t *row_places, int64_t n)
{
    for (int64_t r = 1; r < n; r++)
        if (row_places[r] != row_places[0] + r)
            return 0;
    return 1;
}

void scatter(const ScatterBlock *b, int instruction_set)
{
    if (b->columns) {
        for (int64_t r = 0; r < b->n_rows; r++)
            PUT_ROWS[instruction_set](b, (const float *)b->values + r * b->n_columns, (float *)b->out + b->row_places[r]);
    } else if (!b->column_places) {
        const size_t nbytes = (size_t)(b->n_columns * b->itemsize);
        for (int64_t r = 0; r < b->n_rows; r++)
            memcpy((char *)b->out + b->row_places[r] * b->itemsize, (const char *)b->values + (size_t)r * nbytes, nbytes);
    } else if (b->itemsize == 4 && are_rows_beside(b->row_places, b->n_rows)) {
        put_beside(b, transposer(instruction_set));
    } else if (b->itemsize == 1) {
        put_uint8_t(b);
    } else if (b->itemsize == 2) {
        put_uint16_t(b);
    } else if (b->itemsize == 4) {
        put_uint32_t(b);
    } else {
        put_uint64_t(b);
    }
}
