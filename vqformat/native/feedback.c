/* Quantization with error feedback: each row compensates the errors of the rows before it. */

#include "feedback.h"

#include <stdlib.h>
#include <string.h>

#include "instruction_sets.h"

enum { WIDTH = 64 }; /* columns whose values are in registers */

/* Subtract from columns of a row what ``n`` rows before it add, one row after another, as the twin does. */
static ALWAYS_INLINE void subtract_part(float *row, const float *errors, int64_t stride, const float *upper,
                                        int64_t upper_stride, int64_t n, int64_t width)
{
    float values[WIDTH];
    memcpy(values, row, (size_t)width * sizeof *values);
    for (int64_t k = 0; k < n; k++) {
        const float factor = upper[k * upper_stride], *of_row = errors + k * stride;
        for (int64_t c = 0; c < width; c++)
            values[c] -= factor * of_row[c];
    }
    memcpy(row, values, (size_t)width * sizeof *values);
}

static ALWAYS_INLINE void subtract(const Feedback *f, int64_t row)
{
    const int64_t n_rows = f->search.n_rows, n_columns = f->search.n_columns, width = n_columns / f->n_groups;
    for (int64_t g = 0; g < f->n_groups; g++) {
        const float *upper = f->upper + g * n_rows * n_rows + row, *errors = f->errors + g * width;
        float *aims = f->aims + row * n_columns + g * width;
        int64_t column = 0;
        for (; column + WIDTH <= width; column += WIDTH)
            subtract_part(aims + column, errors + column, n_columns, upper, n_rows, row, WIDTH);
        subtract_part(aims + column, errors + column, n_columns, upper, n_rows, row, width - column);
    }
}

static void subtract_scalar(const Feedback *f, int64_t row) { subtract(f, row); }
#ifdef HAS_X86
TARGET_AVX2 static void subtract_avx2(const Feedback *f, int64_t row) { subtract(f, row); }
TARGET_AVX512 static void subtract_avx512(const Feedback *f, int64_t row) { subtract(f, row); }
static void (*const SUBTRACTIONS[])(const Feedback *, int64_t) = {subtract_scalar, subtract_avx2, subtract_avx512};
#else
static void (*const SUBTRACTIONS[])(const Feedback *, int64_t) = {subtract_scalar, subtract_scalar, subtract_scalar};
#endif

/* Quantize a row. ``costs`` and ``weights`` are memory for the costs of indices and the weights of columns. */
static int search_row(const Feedback *f, int64_t row, float *costs, float *weights, int instruction_set)
{
    const int64_t at = row * f->search.n_columns, width = f->search.n_columns / f->n_groups;
    Search s = f->search;
    s.n_rows = s.tile_rows = 1;
    s.points = f->aims + at, s.contexts += at, s.indices += at, s.books += at;
    s.start = s.end = f->states;
    if (f->n_groups > 1) {
        for (int64_t c = 0; c < s.n_columns; c++)
            weights[c] = f->weights[row * f->n_groups + c / width];
        s.weights = weights;
    } else { /* divide the costs of bits by the weight instead */
        for (int64_t i = 0; i < f->n_costs; i++)
            costs[i] = f->search.costs[i] / f->weights[row];
        s.costs = costs;
    }
    return viterbi_search(&s, instruction_set);
}

int feedback_quantize(const Feedback *f, int instruction_set)
{
    const Search *s = &f->search;
    const int64_t n = s->n_columns, width = n / f->n_groups, n_tiles = (n + s->tile_columns - 1) / s->tile_columns;
    float *costs = malloc((size_t)(f->n_costs + n) * sizeof *costs + 1);
    int has_failed = !costs;
    for (int64_t row = 0; row < s->n_rows && !has_failed; row++) {
        if ((f->first_row + row) % s->tile_rows == 0)
            memset(f->states, 0, (size_t)n_tiles);
        SUBTRACTIONS[instruction_set](f, row);
        has_failed = search_row(f, row, costs, costs + f->n_costs, instruction_set);
        for (int64_t g = 0; g < f->n_groups && !has_failed; g++)
            for (int64_t at = row * n + g * width, end = at + width; at < end; at++)
                f->errors[at] = (f->aims[at] - (float)(2 * s->indices[at] + s->books[at])) /
                                f->spread[row * f->n_groups + g];
    }
    free(costs);
    return has_failed;
}
