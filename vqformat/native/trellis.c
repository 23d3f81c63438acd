/* Decoding the codes of a trellis stage (SPEC 12.1 to 12.4).

   The tiles of a block are lanes. A step decodes one code of each lane, and the lanes take words from one stream, in
   their order (Giesen 2014, "Interleaved entropy coders"). trellis_steps.h has the step in portable C, trellis_vectors.h
   has it in vectors. */

#include "trellis.h"

#include <stdlib.h>

#include "trellis_kernels.h"
#include "trellis_places.h"

void trellis_start(void)
{
    for (int set = 0; set < 256; set++) {
        int n = 0;
        for (int lane = 0; lane < 8; lane++)
            if (set >> lane & 1)
                set_numbers[set][n++] = (uint8_t)lane;
        set_sizes[set] = (uint8_t)n;
    }
#ifdef HAS_X86
    for (int set = 0; set < 256; set++)
        for (int lane = 0, n = 0; lane < 8; lane++)
            for (int byte = 0; byte < 2; byte++)
                words_of_lanes[set][2 * lane + byte] = (uint8_t)(set >> lane & 1 ? n++ : 0x80); /* 0x80 gives 0 */
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

void trellis_slots(const uint32_t *frequencies, int64_t n_tables, int64_t entries, int precision, int is_wide,
                   void *slots)
{
    const uint32_t n_slots = 1u << precision;
    for (int64_t i = 0, at = 0; i < n_tables; i++)
        for (int64_t code = 0, start = 0; code < entries; code++) {
            const uint32_t frequency = *frequencies++, step = (n_slots - frequency) | (uint32_t)start << precision;
            if (is_wide)
                fill_wide((uint64_t *)slots + at, step | (uint64_t)code << 32, frequency);
            else
                fill_narrow((uint32_t *)slots + at, step | (uint32_t)code << 24, frequency);
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

/* Find the first slots of ``down`` times ``n_across`` lanes for their columns ``j``. */
static void find_slots(Lanes *l, int64_t down, int64_t across, int64_t j)
{
    const TrellisBlock *b = l->block;
    for (int64_t a = 0; a < across; a++)
        l->column_slot[a] = (uint32_t)(b->column_classes[a * b->tile_columns + j] * b->n_books) << b->precision;
    for (int64_t d = 0; d < down; d++)
        for (int64_t a = 0; a < across; a++)
            l->first_slot[d * l->n_across + a] = l->row_slot[d] + l->column_slot[a];
}

/* Decode the codes of some columns. ``values`` has a place for those of each column. */
static void decode_columns(Lanes *l, const Part *p, float *const *values, Steps *steps)
{
    const TrellisBlock *b = l->block;
    const int64_t last_width = b->n_columns - (l->n_across - 1) * b->tile_columns; /* of the last tile of a row */
    const int has_contexts = b->column_classes && l->n_across > 1;                 /* other ones at each step */
    for (int64_t j = p->from, end; j < p->to; j = end) {
        const int64_t across = j < last_width ? l->n_across : l->n_across - 1;
        end = j < last_width && last_width < p->to ? last_width : p->to;
        if (has_contexts) {
            find_slots(l, p->down, across, j);
            end = j + 1;
        }
        Run run = {.n = p->down * l->n_across, .n_steps = end - j, .n_ahead = b->n_rows,
                   .first_slot = has_contexts || b->row_classes ? l->first_slot : NULL,
                   .has_code = across < l->n_across ? l->has_code : NULL};
        for (int64_t k = 0; k < run.n_steps; k++) {
            const int64_t class = b->column_classes && !has_contexts ? b->column_classes[j + k] : 0;
            run.slots[k] = (const char *)b->slots + ((size_t)(class * b->n_books) << b->precision) * (b->is_wide ? 8 : 4);
            run.values[k] = values[j - p->from + k];
            const int64_t ahead = j + k + WIDTH;
            run.ahead[k] = l->are_parts && p->i == b->tile_rows - 1 && ahead < b->n_columns ? run_of(b, ahead) : NULL;
        }
        steps(l, &run);
    }
}

/* Prepare what the lanes have in row ``i`` of their tiles. */
static void begin_row(Lanes *l, int64_t i, int64_t down)
{
    const TrellisBlock *b = l->block;
    for (int64_t d = 0; b->row_classes && d < down; d++)
        l->row_slot[d] = (uint32_t)(b->row_classes[d * b->tile_rows + i] * b->n_books) << b->precision;
    for (int64_t t = 0; t < l->n; t++) {
        const int64_t d = t / l->n_across;
        l->first_slot[t] = d < down ? l->row_slot[d] : 0;
        l->has_code[t] = d < down && t % l->n_across < l->n_across - 1 ? ~0u : 0;
    }
}

static int decode_lanes(Lanes *l, int64_t n_down, Steps *steps, const Movers *movers)
{
    const TrellisBlock *b = l->block;
    const int64_t height = b->tile_rows, width = b->tile_columns;
    const int64_t last_height = b->n_rows - (n_down - 1) * height;
    for (int64_t t = 0; t < l->n; t++) {
        l->x[t] = read_u32(b->payload + 4 * t);
        if (l->x[t] < LOWEST)
            return STATE_TOO_LOW;
    }
    for (int64_t i = 0; i < height; i++) {
        const int64_t down = i < last_height ? n_down : n_down - 1;
        begin_row(l, i, down);
        for (int64_t from = 0; from < width; from += WIDTH) {
            const Part part = {.i = i, .down = down, .from = from, .to = from + WIDTH < width ? from + WIDTH : width};
            float *values[WIDTH];
            for (int64_t j = from; j < part.to; j++)
                values[j - from] = values_of(l, i, j);
            if (l->has_runs && !l->are_parts && i == height - 1)
                prefetch_runs(l, &part);
            decode_columns(l, &part, values, steps);
            if (!b->column_places)
                put_rows(l, &part, movers);
            else if (!l->has_runs)
                put_singly(l, &part);
            else if (i == height - 1)
                put_runs(l, &part, movers);
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
    const int has_runs = b->column_places && are_rows_beside(b->row_places, b->n_rows);
    /* With more than two rows of each lane, the same memory would be visited too often */
    const int are_parts = has_runs && n_across == 1 && b->tile_rows <= 2;
    const int64_t n_kept = are_parts ? b->n_rows : has_runs ? (b->tile_rows - 1) * b->tile_columns * stride : 0;
    if (!are_slots_there(b))
        return SLOTS_MISSING;
    uint32_t *allocated = calloc((size_t)(4 * stride + n_down + n_across + WIDTH), sizeof *allocated);
    uint32_t *memory = allocated + (WIDTH - (uintptr_t)allocated / sizeof *memory % WIDTH); /* vectors fill cache lines */
    float *kept = malloc((size_t)(n_kept + 1) * sizeof *kept), *values = calloc((size_t)(WIDTH * stride), sizeof *values);
    if (!allocated || !kept || !values) {
        free(allocated), free(kept), free(values);
        return NO_MEMORY;
    }
    Lanes lanes = {.block = b, .next = b->payload + 4 * n, .end = b->payload + b->payload_nbytes, .n = n,
                   .n_across = n_across, .stride = stride, .x = memory, .state = memory + stride,
                   .first_slot = memory + 2 * stride, .has_code = memory + 3 * stride, .row_slot = memory + 4 * stride,
                   .column_slot = memory + 4 * stride + n_down, .has_runs = has_runs,
                   .are_parts = are_parts, .kept = kept, .values = values};
    for (uint32_t i = 0; i < 4; i++)
        lanes.flips[i] = ((0u - (i & 1)) & b->feedback) ^ ((0u - (i >> 1)) & b->forward);
    const int kernel = (b->is_wide ? 4 : 0) + (b->book ? 2 : 0) + (b->n_books == 2);
    const Movers movers = {.transpose = transposer(instruction_set), .put_rows = row_putter(instruction_set)};
    const int found = decode_lanes(&lanes, n_down, STEPS[instruction_set][kernel], &movers);
    free(allocated), free(kept), free(values);
    return found;
}
