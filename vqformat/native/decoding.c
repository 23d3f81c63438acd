/* Bindings of the kernels that decode, for vqformat/native/decoding.py. */

#include "bindings.h"
#include "codebook.h"
#include "lowrank.h"
#include "scatter.h"
#include "trellis.h"

PyObject *py_trellis_decode(PyObject *self, PyObject *args)
{
    (void)self;
    TrellisBlock b;
    int instruction_set, found;
    unsigned long long payload, row_classes, column_classes, slots, book, row_places, column_places, row_scales,
        addend, out;
    long long payload_nbytes, n_rows, n_columns, tile_rows, tile_columns, n_slots;
    unsigned int feedback, forward;
    if (!PyArg_ParseTuple(args, "iKLLLLLKKiiIIKiLKifKKKKK", &instruction_set, &payload, &payload_nbytes, &n_rows,
                          &n_columns, &tile_rows, &tile_columns, &row_classes, &column_classes, &b.precision,
                          &b.n_books, &feedback, &forward, &slots, &b.is_wide, &n_slots, &book, &b.zero, &b.step,
                          &row_places, &column_places, &row_scales, &addend, &out))
        return NULL;
    b.payload = AT(const uint8_t, payload), b.payload_nbytes = payload_nbytes;
    b.n_rows = n_rows, b.n_columns = n_columns, b.tile_rows = tile_rows, b.tile_columns = tile_columns;
    b.row_classes = AT(const uint8_t, row_classes), b.column_classes = AT(const uint8_t, column_classes);
    b.feedback = feedback, b.forward = forward;
    b.slots = AT(const void, slots), b.n_slots = n_slots;
    b.book = AT(const float, book), b.out = AT(float, out);
    b.row_places = AT(const int64_t, row_places), b.column_places = AT(const int64_t, column_places);
    b.row_scales = AT(const float, row_scales), b.addend = AT(const float, addend);
    Py_BEGIN_ALLOW_THREADS
    found = trellis_decode(&b, instruction_set);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(found);
}

PyObject *py_trellis_slots(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long frequencies, slots;
    long long n_tables, entries;
    int precision, is_wide;
    if (!PyArg_ParseTuple(args, "KLLiiK", &frequencies, &n_tables, &entries, &precision, &is_wide, &slots))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    trellis_slots(AT(const uint32_t, frequencies), n_tables, entries, precision, is_wide, AT(void, slots));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_codebook_decode(PyObject *self, PyObject *args)
{
    (void)self;
    CodebookBlock b;
    int instruction_set, is_sound = 1;
    unsigned long long table, book, steps, row_group, column_group, scales, row_scale, out;
    long long n_blocks, n_columns, dim, n_subvectors, entries, zero, scale_columns, first_column;
    if (!PyArg_ParseTuple(args, "iLLLLLiiKKLKKKKKLLiK", &instruction_set, &n_blocks, &n_columns, &dim, &n_subvectors,
                          &entries, &b.n_planes, &b.width, &table, &book, &zero, &steps, &row_group,
                          &column_group, &scales, &row_scale, &scale_columns, &first_column, &b.adds, &out))
        return NULL;
    b.n_columns = n_columns, b.dim = dim, b.n_subvectors = n_subvectors, b.entries = entries;
    b.book = AT(const float, book), b.steps = AT(const float, steps);
    b.zero = zero;
    b.row_group = AT(const int64_t, row_group), b.column_group = AT(const int64_t, column_group);
    b.scales = AT(const float, scales), b.row_scale = AT(const int64_t, row_scale);
    b.scale_columns = scale_columns, b.first_column = first_column, b.out = AT(float, out);
    const int64_t *entry = AT(const int64_t, table);
    Py_BEGIN_ALLOW_THREADS
    for (long long k = 0; is_sound && k < n_blocks; k++) { /* rows; then address, length, base, digits of each plane */
        b.n_rows = *entry++;
        for (int p = 0; p < MOST_PLANES && p < (b.n_planes ? b.n_planes : 1); p++, entry += 4) {
            b.section[p] = AT(const uint8_t, entry[0]), b.section_nbytes[p] = entry[1];
            b.base[p] = (int)entry[2], b.per_byte[p] = (int)entry[3];
        }
        is_sound = codebook_decode(&b, instruction_set);
        b.out += b.n_rows * n_columns;
        b.row_group = b.row_group ? b.row_group + b.n_rows : NULL;
        b.row_scale = b.row_scale ? b.row_scale + b.n_rows : NULL;
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(is_sound);
}

PyObject *py_lowrank_decode(PyObject *self, PyObject *args)
{
    (void)self;
    LowRankBlock b;
    int instruction_set;
    unsigned long long left, right, row_scales, column_scales, out;
    long long n_rows, n_columns, rank;
    if (!PyArg_ParseTuple(args, "iLLLKKKKiK", &instruction_set, &n_rows, &n_columns, &rank, &left, &right, &row_scales,
                          &column_scales, &b.adds, &out))
        return NULL;
    b.n_rows = n_rows, b.n_columns = n_columns, b.rank = rank;
    b.left = AT(const float, left), b.right = AT(const float, right);
    b.row_scales = AT(const float, row_scales), b.column_scales = AT(const float, column_scales);
    b.out = AT(float, out);
    Py_BEGIN_ALLOW_THREADS
    lowrank_decode(&b, instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_last_place(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long places;
    long long n;
    if (!PyArg_ParseTuple(args, "KL", &places, &n))
        return NULL;
    return PyLong_FromLongLong(last_place(AT(const int64_t, places), n));
}

PyObject *py_scatter(PyObject *self, PyObject *args)
{
    (void)self;
    ScatterBlock b;
    int instruction_set;
    unsigned long long values, row_places, column_places, columns, out;
    long long n_rows, n_columns;
    if (!PyArg_ParseTuple(args, "iLLiKKKKK", &instruction_set, &n_rows, &n_columns, &b.itemsize, &values, &row_places,
                          &column_places, &columns, &out))
        return NULL;
    b.n_rows = n_rows, b.n_columns = n_columns, b.values = AT(const void, values);
    b.row_places = AT(const int64_t, row_places), b.column_places = AT(const int64_t, column_places);
    b.columns = AT(const int32_t, columns), b.out = AT(void, out);
    Py_BEGIN_ALLOW_THREADS
    scatter(&b, instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
