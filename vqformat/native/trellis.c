/* Decoding the codes of a trellis stage (SPEC 12.1 to 12.4).

   The tiles of a block are lanes. A step decodes one code of each lane, and the lanes take words from one stream, in
   their order (Giesen 2014, "Interleaved entropy coders"). trellis_steps.h has the step. */

#include "trellis.h"

#include <stdlib.h>
#include <string.h>

#include "scatter.h"
#include "trellis_steps.h"

void trellis_start(void)
{
#ifdef HAS_X86
    for (int set = 0; set < 256; set++)
        for (int lane = 0, n = 0; lane < 8; lane++) {
            word_of_lane[set][lane] = (uint32_t)n;
            n += set >> lane & 1;
        }
#endif
}

/* Write ``n`` times ``slot``, and up to TOGETHER - 1 times more, which the next code overwrites. */
#define FILL(name, type)                                                                                               \
    static void name(type *out, type slot, uint32_t n)                                                                 \
    {                                                                                                                  \
        for (uint32_t k = 0; k < n; k += TOGETHER)                                                                     \
            for (int j = 0; j < TOGETHER; j++)                                                                         \
                out[k + j] = slot;                                                                                     \
    }
FILL(fill_narrow, uint32_t)
FILL(fill_wide, uint64_t)

void trellis_slots(const uint32_t *frequencies, int64_t n_tables, int64_t entries, int precision, int n_books,
                   int is_wide, void *slots)
{
    const uint32_t n_slots = 1u << precision;
    for (int64_t i = 0, at = 0; i < n_tables; i++)
        for (int64_t code = 0, start = 0; code < entries; code++) {
            const uint32_t frequency = *frequencies++, step = (n_slots - frequency) | (uint32_t)start << precision;
            const uint32_t symbol = (uint32_t)(n_books * code + i % n_books);
            if (is_wide)
                fill_wide((uint64_t *)slots + at, step | (uint64_t)symbol << 32, frequency);
            else
                fill_narrow((uint32_t *)slots + at, step | symbol << 24, frequency);
            start += frequency, at += frequency;
        }
}

/* Whether the classes lead to slots that are there. */
static int are_slots_there(const TrellisBlock *b)
{
    int64_t row = 0, column = 0;
    for (int64_t r = 0; b->row_classes && r < b->n_rows; r++)
        row = b->row_classes[r] > row ? b->row_classes[r] : row;
    for (int64_t c = 0; b->column_classes && c < b->n_columns; c++)
        column = b->column_classes[c] > column ? b->column_classes[c] : column;
    return ((row + column + 1) * b->n_books) << b->precision <= b->n_slots;
}

/* Find the first slots of the lanes for their columns ``j``. */
static void find_slots(Lanes *l, int64_t down, int64_t across, int64_t j)
{
    const TrellisBlock *b = l->block;
    for (int64_t a = 0; a < across; a++)
        l->column_slot[a] = (uint32_t)(b->column_classes[a * b->tile_columns + j] * b->n_books) << b->precision;
    if (l->n_across == 1) {
        l->slots = (const char *)b->slots + (size_t)l->column_slot[0] * (b->is_wide ? 8 : 4);
        return;
    }
    for (int64_t d = 0; d < down; d++)
        for (int64_t a = 0; a < across; a++)
            l->first_slot[d * l->n_across + a] = l->row_slot[d] + l->column_slot[a];
}

/* What moves values, for the instruction set. */
typedef struct {
    Transpose *transpose;
    PutRows *put_rows;
    Spread *spread;
    Spacing rows; /* of a tile, in a column whose values are beside each other */
} Movers;

/* Put the values of row ``i`` of the tiles, from column ``from`` to column ``to``, in their places: runs of a row. */
static void put_runs(Lanes *l, int64_t i, int64_t down, int64_t from, int64_t to, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    float by_lane[WIDTH][WIDTH];
    const int are_whole = to - from == WIDTH && l->n_across * b->tile_columns == b->n_columns;
    for (int64_t t = 0, d = 0, a = 0; are_whole && t < down * l->n_across; t += WIDTH) {
        float scales[WIDTH], *places[WIDTH];
        const float *addends[WIDTH];
        int n = 0;
        for (; n < WIDTH && d < down; n++) {
            const int64_t row = d * b->tile_rows + i, column = a * b->tile_columns + from;
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
    for (int64_t t = 0; t < down * l->n_across; t += WIDTH) {
        if (b->tile_columns >= WIDTH)
            movers->transpose(l->values + t, l->stride, by_lane);
        else
            for (int k = 0; k < WIDTH; k++)
                for (int64_t j = 0; j < to - from; j++)
                    by_lane[k][j] = l->values[j * l->stride + t + k];
        for (int k = 0; k < WIDTH && d < down; k++) {
            const int64_t row = d * b->tile_rows + i, left = b->n_columns - a * b->tile_columns;
            const int64_t n = (left < to ? left : to) - from;
            float *const out = b->out + b->row_places[row] + a * b->tile_columns + from;
            if (b->row_scales)
                for (int j = 0; j < WIDTH; j++)
                    by_lane[k][j] *= b->row_scales[row];
            if (b->addend)
                for (int j = 0; j < n; j++)
                    by_lane[k][j] += b->addend[row * b->n_columns + a * b->tile_columns + from + j];
            if (n == WIDTH)
                memcpy(out, by_lane[k], sizeof by_lane[k]);
            else if (n > 0)
                memcpy(out, by_lane[k], (size_t)n * sizeof *out);
            if (++a == l->n_across)
                a = 0, d++;
        }
    }
}

/* Add what belongs to the columns ``from`` to ``to`` of row ``i`` of the tiles to their values. */
static void add_to_values(Lanes *l, int64_t i, int64_t down, int64_t from, int64_t to, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    const int64_t next_lane = b->tile_rows * b->n_columns; /* if tiles are below each other only */
    int64_t t = 0;
    if (l->n_across == 1 && to - from == WIDTH)
        for (float of_steps[WIDTH][WIDTH]; t + WIDTH <= down; t += WIDTH) {
            float *values[WIDTH];
            for (int j = 0; j < WIDTH; j++)
                values[j] = l->values + j * l->stride + t;
            movers->transpose(b->addend + i * b->n_columns + t * next_lane + from, next_lane, of_steps);
            movers->put_rows(of_steps, WIDTH, NULL, (const float *const *)values, values);
        }
    for (; t < down * l->n_across; t++) {
        const int64_t row = t / l->n_across * b->tile_rows + i, first = t % l->n_across * b->tile_columns;
        for (int64_t j = from; j < to && first + j < b->n_columns; j++)
            l->values[(j - from) * l->stride + t] += b->addend[row * b->n_columns + first + j];
    }
}

/* The same where the values of a row are not beside each other. ``are_beside``: those of a column are. */
static void put_singly(Lanes *l, int64_t i, int64_t down, int64_t from, int64_t to, int are_beside,
                       const Movers *movers)
{
    const TrellisBlock *b = l->block;
    const int64_t height = b->tile_rows, n_across = l->n_across, *const row_places = b->row_places + i;
    for (int64_t j = 0; b->row_scales && j < to - from; j++)
        for (int64_t d = 0; d < down; d++)
            for (int64_t a = 0; a < n_across; a++)
                l->values[j * l->stride + d * n_across + a] *= b->row_scales[d * height + i];
    if (b->addend)
        add_to_values(l, i, down, from, to, movers);
    for (int64_t j = from; j < to; j++)
        for (int64_t a = 0; a < n_across && a * b->tile_columns + j < b->n_columns; a++) {
            float *const out = b->out + b->column_places[a * b->tile_columns + j];
            const float *values = l->values + (j - from) * l->stride + a;
            if (!are_beside)
                for (int64_t d = 0; d < down; d++)
                    out[row_places[d * height]] = values[d * n_across];
            else if (height == 1 && n_across == 1)
                memcpy(out + row_places[0], values, (size_t)down * sizeof *out);
            else if (n_across == 1)
                movers->spread(values, down, &movers->rows, out + row_places[0]);
            else
                for (int64_t d = 0; d < down; d++)
                    out[row_places[0] + d * height] = values[d * n_across];
        }
}

static int decode_lanes(Lanes *l, int64_t n_down, int64_t n_steps, Step *step, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    const int64_t height = b->tile_rows, width = b->tile_columns, n_across = l->n_across;
    const int64_t last_height = b->n_rows - (n_down - 1) * height, last_width = b->n_columns - (n_across - 1) * width;
    const int are_beside = b->column_places && are_rows_beside(b->row_places, b->n_rows);
    for (int64_t t = 0; t < l->n; t++) {
        l->x[t] = read_u32(b->payload + 4 * t);
        if (l->x[t] < LOWEST)
            return STATE_TOO_LOW;
    }
    for (int64_t i = 0; i < height; i++) {
        const int64_t down = i < last_height ? n_down : n_down - 1;
        const uint32_t *first_slot = NULL;
        if (b->row_classes || (b->column_classes && n_across > 1)) {
            first_slot = l->first_slot;
            for (int64_t d = 0; b->row_classes && d < down; d++)
                l->row_slot[d] = (uint32_t)(b->row_classes[d * height + i] * b->n_books) << b->precision;
            for (int64_t t = 0; t < down * n_across; t++)
                l->first_slot[t] = l->row_slot[t / n_across];
        }
        for (int64_t from = 0; from < width; from += n_steps) {
            const int64_t to = from + n_steps < width ? from + n_steps : width;
            for (int64_t j = from; j < to; j++) {
                const int64_t across = j < last_width ? n_across : n_across - 1;
                float *const out = l->values + (j - from) * l->stride;
                if (b->column_classes)
                    find_slots(l, down, across, j);
                if (across == n_across)
                    step(l, 0, down * n_across, first_slot, out);
                else
                    for (int64_t d = 0; d < down; d++)
                        step(l, d * n_across, d * n_across + across, first_slot, out);
            }
            if (b->column_places)
                put_singly(l, i, down, from, to, are_beside, movers);
            else
                put_runs(l, i, down, from, to, movers);
        }
        if (l->is_short)
            return WORDS_END;
    }
    if (l->next < l->end)
        return WORDS_LEFT;
    for (int64_t t = 0; t < l->n; t++)
        if (l->x[t] != LOWEST)
            return STATE_AT_END;
    return OK;
}

int trellis_decode(const TrellisBlock *b, int instruction_set)
{
    const int64_t n_down = (b->n_rows + b->tile_rows - 1) / b->tile_rows;
    const int64_t n_across = (b->n_columns + b->tile_columns - 1) / b->tile_columns;
    const int64_t n = n_down * n_across, stride = (n + WIDTH - 1) / WIDTH * WIDTH + WIDTH;
    const int64_t n_steps = b->tile_columns < WIDTH ? b->tile_columns : WIDTH;
    if (!are_slots_there(b))
        return SLOTS_MISSING;
    uint32_t *allocated = calloc((size_t)(3 * stride + n_down + n_across + WIDTH), sizeof *allocated);
    uint32_t *memory = allocated + (WIDTH - (uintptr_t)allocated / sizeof *memory % WIDTH); /* vectors fill cache lines */
    float *values = calloc((size_t)(n_steps * stride), sizeof *values);
    if (!allocated || !values) {
        free(allocated), free(values);
        return NO_MEMORY;
    }
    Lanes lanes = {.block = b, .next = b->payload + 4 * n, .end = b->payload + b->payload_nbytes, .n = n,
                   .n_across = n_across, .stride = stride, .slots = b->slots, .x = memory, .state = memory + stride,
                   .first_slot = memory + 2 * stride, .row_slot = memory + 3 * stride,
                   .column_slot = memory + 3 * stride + n_down, .values = values};
    for (uint32_t i = 0; i < 4; i++)
        lanes.flips[i] = (((0u - (i & 1)) & b->feedback) ^ ((0u - (i >> 1)) & b->forward)) << b->precision;
    const int kernel = (b->is_wide ? 4 : 0) + (b->book ? 2 : 0) + (b->n_books == 2);
    Movers movers = {.transpose = transposer(instruction_set), .put_rows = row_putter(instruction_set),
                     .spread = spreader(instruction_set)};
    set_spacing(&movers.rows, b->tile_rows);
    int found = decode_lanes(&lanes, n_down, n_steps, STEPS[instruction_set][kernel], &movers);
    free(allocated), free(values);
    return found;
}
