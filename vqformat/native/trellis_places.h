/* Putting the values of the lanes of a trellis stage in their places in the tensor; for trellis.c only. */

#ifndef VQFORMAT_TRELLIS_PLACES_H
#define VQFORMAT_TRELLIS_PLACES_H

#include "scatter.h"
#include "trellis_steps.h"

/* What moves values, for the instruction set. */
typedef struct {
    Transpose *transpose;
    PutRows *put_rows;
} Movers;

/* Some columns of a row of the tiles: ``from`` to ``to`` of row ``i``, which ``down`` tiles below each other have. */
typedef struct {
    int64_t i, down, from, to;
} Part;

/* Put values in runs of a row. */
static void put_rows(const Lanes *l, const Part *p, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    float by_lane[WIDTH][WIDTH];
    const int are_whole = p->to - p->from == WIDTH && l->n_across * b->tile_columns == b->n_columns;
    for (int64_t t = 0, d = 0, a = 0; are_whole && t < p->down * l->n_across; t += WIDTH) {
        float scales[WIDTH], *places[WIDTH];
        const float *addends[WIDTH];
        int n = 0;
        for (; n < WIDTH && d < p->down; n++) {
            const int64_t row = d * b->tile_rows + p->i, column = a * b->tile_columns + p->from;
            places[n] = b->out + b->row_places[row] + column;
            scales[n] = b->row_scales ? b->row_scales[row] : 1.0f;
            addends[n] = b->addend ? b->addend + row * b->n_columns + column : NULL;
            if (++a == l->n_across)
                a = 0, d++;
        }
        movers->transpose(l->values + t, l->stride, by_lane);
        movers->put_rows(by_lane, n, b->row_scales ? scales : NULL, b->addend ? addends : NULL, places);
    }
    if (are_whole)
        return;
    /* Runs that are shorter than a square, and tiles that the block cuts short */
    int64_t d = 0, a = 0;
    for (int64_t t = 0; t < p->down * l->n_across; t += WIDTH) {
        if (b->tile_columns >= WIDTH)
            movers->transpose(l->values + t, l->stride, by_lane);
        else
            for (int k = 0; k < WIDTH; k++)
                for (int64_t j = 0; j < p->to - p->from; j++)
                    by_lane[k][j] = l->values[j * l->stride + t + k];
        for (int k = 0; k < WIDTH && d < p->down; k++) {
            const int64_t row = d * b->tile_rows + p->i, left = b->n_columns - a * b->tile_columns;
            const int64_t n = (left < p->to ? left : p->to) - p->from;
            float *const out = b->out + b->row_places[row] + a * b->tile_columns + p->from;
            if (b->row_scales)
                for (int j = 0; j < WIDTH; j++)
                    by_lane[k][j] *= b->row_scales[row];
            if (b->addend)
                for (int j = 0; j < n; j++)
                    by_lane[k][j] += b->addend[row * b->n_columns + a * b->tile_columns + p->from + j];
            if (n == WIDTH)
                memcpy(out, by_lane[k], sizeof by_lane[k]);
            else if (n > 0)
                memcpy(out, by_lane[k], (size_t)n * sizeof *out);
            if (++a == l->n_across)
                a = 0, d++;
        }
    }
}

/* Put values in their places one by one. */
static void put_singly(const Lanes *l, const Part *p)
{
    const TrellisBlock *b = l->block;
    for (int64_t j = p->from; j < p->to; j++)
        for (int64_t a = 0; a < l->n_across && a * b->tile_columns + j < b->n_columns; a++)
            for (int64_t d = 0; d < p->down; d++) {
                const int64_t row = d * b->tile_rows + p->i, column = a * b->tile_columns + j;
                float value = l->values[(j - p->from) * l->stride + d * l->n_across + a];
                if (b->row_scales)
                    value *= b->row_scales[row];
                if (b->addend)
                    value += b->addend[row * b->n_columns + column];
                b->out[b->row_places[row] + b->column_places[column]] = value;
            }
}

/* Where the rows of a column are beside each other, the values of a column are a run in the tensor. */
static float *run_of(const TrellisBlock *b, int64_t column)
{
    return b->out + b->row_places[0] + b->column_places[column];
}

/* Where the values of row ``i`` of the tiles, column ``j``, go first. For runs they are kept until the last row, or put in
   the run: those of the second row behind those of the first. */
static float *values_of(const Lanes *l, int64_t i, int64_t j)
{
    const TrellisBlock *b = l->block;
    if (l->are_parts)
        return run_of(b, j) + i * l->n;
    return l->has_runs && i < b->tile_rows - 1 ? l->kept + (i * b->tile_columns + j) * l->stride
                                               : l->values + j % WIDTH * l->stride;
}

/* Ask for the memory of the runs of some columns, before their last row is decoded: the processor does not foresee where
   they are. Inlined, for GCC leaves out calls of functions that only do this. */
static ALWAYS_INLINE void prefetch_runs(const Lanes *l, const Part *p)
{
    const TrellisBlock *b = l->block;
    for (int64_t a = 0; a < l->n_across; a++)
        for (int64_t j = p->from; j < p->to && a * b->tile_columns + j < b->n_columns; j++) {
            const float *const run = run_of(b, a * b->tile_columns + j);
            for (int64_t row = 0; row < b->n_rows; row += WIDTH)
                PREFETCH_TO_WRITE(run + row);
        }
}

/* Put the values of column ``j`` of the tiles that are number ``a`` from the left in their run. */
static void put_run(const Lanes *l, int64_t j, int64_t a, float *run)
{
    const int64_t n = l->block->n_rows, height = l->block->tile_rows;
    for (int64_t i = 0; i < height; i++) {
        const float *values = values_of(l, i, j) + a;
        for (int64_t row = i; row < n; row += height, values += l->n_across)
            run[row] = *values;
    }
}

/* Bring a run of two rows for each lane in its order, after the values of each row were put there together. */
static void merge_run(const Lanes *l, float *run)
{
    const int64_t n = l->block->n_rows;
    float *const first = l->kept, *const second = first + l->n;
    memcpy(first, run, (size_t)n * sizeof *run);
    for (int64_t d = 0; d < n / 2; d++) /* compilers make vectors of this */
        run[2 * d] = first[d], run[2 * d + 1] = second[d];
    if (n % 2)
        run[n - 1] = first[n / 2];
}

/* Put the values of some columns, of all rows of the tiles, in their runs. */
static void put_runs(const Lanes *l, const Part *p, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    for (int64_t a = 0; a < l->n_across; a++) {
        const int64_t column = a * b->tile_columns + p->from, left = b->n_columns - column;
        const int n = (int)(left < p->to - p->from ? left : p->to - p->from);
        float *runs[WIDTH], square[WIDTH][WIDTH];
        for (int k = 0; k < n; k++) {
            float *const run = runs[k] = run_of(b, column + k);
            if (!l->are_parts)
                put_run(l, p->from + k, a, run);
            else if (b->tile_rows == 2)
                merge_run(l, run);
            for (int64_t row = 0; b->row_scales && row < b->n_rows; row++)
                run[row] *= b->row_scales[row];
        }
        int64_t row = 0;
        for (; b->addend && n == WIDTH && row + WIDTH <= b->n_rows; row += WIDTH) {
            movers->transpose(b->addend + row * b->n_columns + column, b->n_columns, square);
            movers->put_rows(square, WIDTH, NULL, (const float *const *)runs, runs);
            for (int k = 0; k < WIDTH; k++)
                runs[k] += WIDTH;
        }
        for (const int64_t first = row; b->addend && row < b->n_rows; row++)
            for (int k = 0; k < n; k++)
                runs[k][row - first] += b->addend[row * b->n_columns + column + k];
    }
}

#endif
