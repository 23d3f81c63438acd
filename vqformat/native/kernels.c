/* The extension module vqformat.native._kernels: kernels in C for what NumPy does slowly.

   Arrays come as addresses; vqformat/native/__init__.py has checked their dtypes and lengths. Kernels work without the
   interpreter lock. The limited API of CPython 3.10 is used, so one build serves all later versions. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "arrays.h"
#include "codebook.h"
#include "crc.h"
#include "entropy.h"
#include "feedback.h"
#include "lowrank.h"
#include "nearest.h"
#include "planes.h"
#include "scatter.h"
#include "trellis.h"
#include "viterbi.h"

/* The array interface of NumPy, version 3. */
typedef struct {
    int two, n_axes;
    char kind;
    int itemsize, flags;
    const Py_ssize_t *shape, *strides;
    void *data;
    PyObject *description;
} ArrayInterface;

enum { C_CONTIGUOUS = 1 };

static PyObject *py_address(PyObject *self, PyObject *array)
{
    (void)self;
    if (array == Py_None)
        return PyLong_FromLong(0);
    PyObject *capsule = PyObject_GetAttrString(array, "__array_struct__"), *address = NULL;
    if (!capsule)
        return NULL;
    const ArrayInterface *found = PyCapsule_GetPointer(capsule, NULL);
    if (found && !(found->flags & C_CONTIGUOUS))
        PyErr_SetString(PyExc_AssertionError, "an array is not C-contiguous");
    else if (found)
        address = PyLong_FromVoidPtr(found->data);
    Py_DECREF(capsule);
    return address;
}

static PyObject *py_trellis_decode(PyObject *self, PyObject *args)
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
    b.payload = (const uint8_t *)(uintptr_t)payload, b.payload_nbytes = payload_nbytes;
    b.n_rows = n_rows, b.n_columns = n_columns, b.tile_rows = tile_rows, b.tile_columns = tile_columns;
    b.row_classes = (const uint8_t *)(uintptr_t)row_classes;
    b.column_classes = (const uint8_t *)(uintptr_t)column_classes;
    b.feedback = feedback, b.forward = forward;
    b.slots = (const void *)(uintptr_t)slots, b.n_slots = n_slots;
    b.book = (const float *)(uintptr_t)book, b.out = (float *)(uintptr_t)out;
    b.row_places = (const int64_t *)(uintptr_t)row_places, b.column_places = (const int64_t *)(uintptr_t)column_places;
    b.row_scales = (const float *)(uintptr_t)row_scales, b.addend = (const float *)(uintptr_t)addend;
    Py_BEGIN_ALLOW_THREADS
    found = trellis_decode(&b, instruction_set);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(found);
}

static PyObject *py_trellis_slots(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long frequencies, slots;
    long long n_tables, entries;
    int precision, n_books, is_wide;
    if (!PyArg_ParseTuple(args, "KLLiiiK", &frequencies, &n_tables, &entries, &precision, &n_books, &is_wide, &slots))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    trellis_slots((const uint32_t *)(uintptr_t)frequencies, n_tables, entries, precision, n_books, is_wide,
                  (void *)(uintptr_t)slots);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_codebook_decode(PyObject *self, PyObject *args)
{
    (void)self;
    CodebookBlock b;
    int instruction_set, is_sound;
    unsigned long long planes, book, steps, row_group, column_group, scales, row_scale, out;
    long long n_rows, n_columns, dim, n_subvectors, entries, zero, scale_columns, first_column;
    if (!PyArg_ParseTuple(args, "iLLLLLiiKKLKKKKKLLiK", &instruction_set, &n_rows, &n_columns, &dim, &n_subvectors,
                          &entries, &b.n_planes, &b.width, &planes, &book, &zero, &steps, &row_group,
                          &column_group, &scales, &row_scale, &scale_columns, &first_column, &b.adds, &out))
        return NULL;
    const int64_t *plane = (const int64_t *)(uintptr_t)planes; /* address, length, base, digits of each */
    for (int p = 0; p < MOST_PLANES && p < (b.n_planes ? b.n_planes : 1); p++, plane += 4) {
        b.section[p] = (const uint8_t *)(uintptr_t)plane[0], b.section_nbytes[p] = plane[1];
        b.base[p] = (int)plane[2], b.per_byte[p] = (int)plane[3];
    }
    b.n_rows = n_rows, b.n_columns = n_columns, b.dim = dim, b.n_subvectors = n_subvectors, b.entries = entries;
    b.book = (const float *)(uintptr_t)book, b.steps = (const float *)(uintptr_t)steps;
    b.zero = zero;
    b.row_group = (const int64_t *)(uintptr_t)row_group, b.column_group = (const int64_t *)(uintptr_t)column_group;
    b.scales = (const float *)(uintptr_t)scales, b.row_scale = (const int64_t *)(uintptr_t)row_scale;
    b.scale_columns = scale_columns, b.first_column = first_column, b.out = (float *)(uintptr_t)out;
    Py_BEGIN_ALLOW_THREADS
    is_sound = codebook_decode(&b, instruction_set);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(is_sound);
}

static PyObject *py_lowrank_decode(PyObject *self, PyObject *args)
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
    b.left = (const float *)(uintptr_t)left, b.right = (const float *)(uintptr_t)right;
    b.row_scales = (const float *)(uintptr_t)row_scales, b.column_scales = (const float *)(uintptr_t)column_scales;
    b.out = (float *)(uintptr_t)out;
    Py_BEGIN_ALLOW_THREADS
    lowrank_decode(&b, instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_last_place(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long places;
    long long n;
    if (!PyArg_ParseTuple(args, "KL", &places, &n))
        return NULL;
    return PyLong_FromLongLong(last_place((const int64_t *)(uintptr_t)places, n));
}

static PyObject *py_scatter(PyObject *self, PyObject *args)
{
    (void)self;
    ScatterBlock b;
    int instruction_set;
    unsigned long long values, row_places, column_places, out;
    long long n_rows, n_columns;
    if (!PyArg_ParseTuple(args, "iLLiKKKK", &instruction_set, &n_rows, &n_columns, &b.itemsize, &values, &row_places, &column_places, &out))
        return NULL;
    b.n_rows = n_rows, b.n_columns = n_columns, b.values = (const void *)(uintptr_t)values;
    b.row_places = (const int64_t *)(uintptr_t)row_places, b.column_places = (const int64_t *)(uintptr_t)column_places;
    b.out = (void *)(uintptr_t)out;
    Py_BEGIN_ALLOW_THREADS
    scatter(&b, instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_viterbi_search(PyObject *self, PyObject *args)
{
    (void)self;
    Search s;
    int instruction_set, has_failed;
    unsigned long long points, contexts, weights, costs, start, indices, books, end;
    long long n_rows, n_columns, tile_rows, tile_columns;
    if (!PyArg_ParseTuple(args, "iLLLLKKKKiiIIKKKK", &instruction_set, &n_rows, &n_columns, &tile_rows, &tile_columns,
                          &points, &contexts, &weights, &costs, &s.reach, &s.n_states, &s.feedback, &s.forward, &start,
                          &indices, &books, &end))
        return NULL;
    s.n_rows = n_rows, s.n_columns = n_columns, s.tile_rows = tile_rows, s.tile_columns = tile_columns;
    s.points = (const float *)(uintptr_t)points, s.contexts = (const uint8_t *)(uintptr_t)contexts;
    s.weights = (const float *)(uintptr_t)weights, s.costs = (const float *)(uintptr_t)costs;
    s.start = (const uint8_t *)(uintptr_t)start, s.indices = (int16_t *)(uintptr_t)indices;
    s.books = (uint8_t *)(uintptr_t)books, s.end = (uint8_t *)(uintptr_t)end;
    Py_BEGIN_ALLOW_THREADS
    has_failed = viterbi_search(&s, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}

static PyObject *py_feedback_quantize(PyObject *self, PyObject *args)
{
    (void)self;
    Feedback f = {.search = {.weights = NULL}};
    Search *s = &f.search;
    int instruction_set, has_failed;
    unsigned long long aims, contexts, costs, weights, spread, upper, states, indices, books, errors;
    long long n_rows, n_columns, tile_rows, tile_columns, first_row, n_groups, n_costs;
    if (!PyArg_ParseTuple(args, "iLLLLLLLiiIIKKKKKKKKKK", &instruction_set, &n_rows, &n_columns, &tile_rows,
                          &tile_columns, &first_row, &n_groups, &n_costs, &s->reach, &s->n_states, &s->feedback,
                          &s->forward, &aims, &contexts, &costs, &weights, &spread, &upper, &states, &indices, &books,
                          &errors))
        return NULL;
    s->n_rows = n_rows, s->n_columns = n_columns, s->tile_rows = tile_rows, s->tile_columns = tile_columns;
    f.first_row = first_row, f.n_groups = n_groups, f.n_costs = n_costs;
    f.aims = (float *)(uintptr_t)aims, s->points = f.aims, s->contexts = (const uint8_t *)(uintptr_t)contexts;
    s->costs = (const float *)(uintptr_t)costs, f.weights = (const float *)(uintptr_t)weights;
    f.spread = (const float *)(uintptr_t)spread, f.upper = (const float *)(uintptr_t)upper;
    f.states = (uint8_t *)(uintptr_t)states, s->indices = (int16_t *)(uintptr_t)indices;
    s->books = (uint8_t *)(uintptr_t)books, f.errors = (float *)(uintptr_t)errors;
    Py_BEGIN_ALLOW_THREADS
    has_failed = feedback_quantize(&f, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}

static PyObject *py_crc32(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long bytes;
    long long n;
    unsigned int crc;
    if (!PyArg_ParseTuple(args, "KLI", &bytes, &n, &crc))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    crc = crc_of((const uint8_t *)(uintptr_t)bytes, n, crc);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *py_has_crc32(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyBool_FromLong(has_crc32());
}

static PyObject *py_planes_split(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long words, planes;
    long long n;
    int width, rotates;
    if (!PyArg_ParseTuple(args, "KLiiK", &words, &n, &width, &rotates, &planes))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_split((const void *)(uintptr_t)words, n, width, rotates, (uint8_t *)(uintptr_t)planes);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_planes_count(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long data, counts;
    long long n;
    if (!PyArg_ParseTuple(args, "KLK", &data, &n, &counts))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_count((const uint8_t *)(uintptr_t)data, n, (uint32_t *)(uintptr_t)counts);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_planes_huffman(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long data, codes, stream;
    long long n, nbytes;
    if (!PyArg_ParseTuple(args, "KLKK", &data, &n, &codes, &stream))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    nbytes = planes_huffman((const uint8_t *)(uintptr_t)data, n, (const uint32_t *)(uintptr_t)codes,
                            (uint8_t *)(uintptr_t)stream);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(nbytes);
}

static int parse_codes(PyObject *args, const char *format, Codes *c, unsigned long long others[2], long long tile[2],
                       int *precision, int *instruction_set)
{
    unsigned long long indices, books, row_classes, column_classes;
    long long n_rows, n_columns, stride, n_books, entries, n_symbols;
    if (!PyArg_ParseTuple(args, format, &n_rows, &n_columns, &stride, &indices, &books, &row_classes, &column_classes,
                          &c->zero, &n_books, &entries, &n_symbols, &others[0], &others[1], &tile[0], &tile[1],
                          precision, instruction_set))
        return 0;
    c->n_rows = n_rows, c->n_columns = n_columns, c->stride = stride;
    c->indices = (const int16_t *)(uintptr_t)indices, c->books = (const uint8_t *)(uintptr_t)books;
    c->row_classes = (const uint8_t *)(uintptr_t)row_classes;
    c->column_classes = (const uint8_t *)(uintptr_t)column_classes;
    c->n_books = n_books, c->entries = entries, c->n_symbols = n_symbols;
    return 1;
}

static PyObject *py_count_codes(PyObject *self, PyObject *args)
{
    (void)self;
    Codes c;
    unsigned long long others[2];
    long long tile[2];
    int precision, instruction_set, found;
    if (!parse_codes(args, "LLLKKKKiLLLK|KLLii", &c, others, tile, &precision, &instruction_set))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = count_codes(&c, (int64_t *)(uintptr_t)others[0]);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(found);
}

static PyObject *py_rans_encode(PyObject *self, PyObject *args)
{
    (void)self;
    Codes c;
    unsigned long long others[2];
    long long tile[2], found;
    int precision, instruction_set;
    if (!parse_codes(args, "LLLKKKKiLLLKKLLii", &c, others, tile, &precision, &instruction_set))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = rans_encode(&c, tile[0], tile[1], (const uint32_t *)(uintptr_t)others[0], precision,
                        (uint8_t *)(uintptr_t)others[1], instruction_set);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(found);
}

static PyObject *py_sum_errors(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long points, indices, books, factors, sums;
    long long n_rows, n_columns;
    if (!PyArg_ParseTuple(args, "LLKKKKK", &n_rows, &n_columns, &points, &indices, &books, &factors, &sums))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum_errors(n_rows, n_columns, (const float *)(uintptr_t)points, (const int16_t *)(uintptr_t)indices,
               (const uint8_t *)(uintptr_t)books, (const float *)(uintptr_t)factors, (float *)(uintptr_t)sums);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_sum_values(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set, are_squared;
    unsigned long long values, sums;
    long long n;
    if (!PyArg_ParseTuple(args, "iKLiK", &instruction_set, &values, &n, &are_squared, &sums))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum_values((const float *)(uintptr_t)values, n, are_squared, (double *)(uintptr_t)sums, instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_find_nearest(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set, is_double, has_failed;
    unsigned long long vectors, entries, codes, top;
    long long n, n_entries, dim;
    if (!PyArg_ParseTuple(args, "iKKLLLKKi", &instruction_set, &vectors, &entries, &n, &n_entries, &dim, &codes, &top,
                          &is_double))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    has_failed = find_nearest((const void *)(uintptr_t)vectors, (const void *)(uintptr_t)entries, n, n_entries, dim,
                              (int64_t *)(uintptr_t)codes, (void *)(uintptr_t)top, is_double != 0, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}

static PyObject *py_instruction_sets(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    int has_avx2 = 0, has_avx512 = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
    has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return Py_BuildValue("(iii)", 1, has_avx2, has_avx512);
}

static PyMethodDef METHODS[] = {
    {"address", py_address, METH_O, "The address of the values of an array, which is C-contiguous; 0 for None."},
    {"planes_split", py_planes_split, METH_VARARGS, "Split words into byte planes; see planes.h."},
    {"planes_count", py_planes_count, METH_VARARGS, "Count the values of bytes; see planes.h."},
    {"planes_huffman", py_planes_huffman, METH_VARARGS, "Write a Huffman stream; see planes.h."},
    {"trellis_decode", py_trellis_decode, METH_VARARGS, "Decode a block of a trellis stage; see trellis.h."},
    {"trellis_slots", py_trellis_slots, METH_VARARGS, "Fill look-up tables by slot; see trellis.h."},
    {"codebook_decode", py_codebook_decode, METH_VARARGS, "Decode a block of a codebook stage; see codebook.h."},
    {"crc32", py_crc32, METH_VARARGS, "The CRC-32 of bytes; see crc.h."},
    {"has_crc32", py_has_crc32, METH_NOARGS, "Whether the processor has what it needs."},
    {"lowrank_decode", py_lowrank_decode, METH_VARARGS, "Compute a block of a low-rank stage; see lowrank.h."},
    {"last_place", py_last_place, METH_VARARGS, "The largest place; see scatter.h."},
    {"scatter", py_scatter, METH_VARARGS, "Put the values of a block in their places; see scatter.h."},
    {"viterbi_search", py_viterbi_search, METH_VARARGS, "Find the paths with the least cost; see viterbi.h."},
    {"feedback_quantize", py_feedback_quantize, METH_VARARGS, "Quantize rows with error feedback; see feedback.h."},
    {"count_codes", py_count_codes, METH_VARARGS, "Count codes; see entropy.h."},
    {"rans_encode", py_rans_encode, METH_VARARGS, "Encode a block of codes; see entropy.h."},
    {"sum_errors", py_sum_errors, METH_VARARGS, "Sum the errors of columns; see arrays.h."},
    {"sum_values", py_sum_values, METH_VARARGS, "Sum values or squares; see arrays.h."},
    {"find_nearest", py_find_nearest, METH_VARARGS, "Find the nearest entries; see nearest.h."},
    {"instruction_sets", py_instruction_sets, METH_NOARGS, "Which of scalar, AVX2, AVX-512 the processor has."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels in C.", 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    trellis_start();
    return PyModule_Create(&MODULE);
}
