/* Bindings of the kernels that encode, for vqformat/native/encoding.py and vqformat/native/planes.py. */

#include "arrays.h"
#include "bindings.h"
#include "entropy.h"
#include "feedback.h"
#include "nearest.h"
#include "planes.h"
#include "viterbi.h"

PyObject *py_viterbi_search(PyObject *self, PyObject *args)
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
    s.points = AT(const float, points), s.contexts = AT(const uint8_t, contexts);
    s.weights = AT(const float, weights), s.costs = AT(const float, costs);
    s.start = AT(const uint8_t, start), s.indices = AT(int16_t, indices);
    s.books = AT(uint8_t, books), s.end = AT(uint8_t, end);
    Py_BEGIN_ALLOW_THREADS
    has_failed = viterbi_search(&s, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}

PyObject *py_feedback_quantize(PyObject *self, PyObject *args)
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
    f.aims = AT(float, aims), s->points = f.aims, s->contexts = AT(const uint8_t, contexts);
    s->costs = AT(const float, costs), f.weights = AT(const float, weights);
    f.spread = AT(const float, spread), f.upper = AT(const float, upper);
    f.states = AT(uint8_t, states), s->indices = AT(int16_t, indices);
    s->books = AT(uint8_t, books), f.errors = AT(float, errors);
    Py_BEGIN_ALLOW_THREADS
    has_failed = feedback_quantize(&f, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}

PyObject *py_planes_split(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long words, planes;
    long long n;
    int width, rotates;
    if (!PyArg_ParseTuple(args, "KLiiK", &words, &n, &width, &rotates, &planes))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_split(AT(const void, words), n, width, rotates, AT(uint8_t, planes));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_planes_split_floats(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long words, low, middle, high;
    long long n;
    int below;
    if (!PyArg_ParseTuple(args, "KLiKKK", &words, &n, &below, &low, &middle, &high))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_split_floats(AT(const uint16_t, words), n, below, AT(uint8_t, low), AT(uint8_t, middle), AT(uint8_t, high));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_planes_code_lengths(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long counts, lengths;
    int longest;
    if (!PyArg_ParseTuple(args, "KiK", &counts, &longest, &lengths))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_code_lengths(AT(const uint32_t, counts), longest, AT(uint32_t, lengths));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_planes_count(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long data, counts;
    long long n;
    if (!PyArg_ParseTuple(args, "KLK", &data, &n, &counts))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    planes_count(AT(const uint8_t, data), n, AT(uint32_t, counts));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_planes_huffman(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long data, codes, stream;
    long long n, nbytes;
    if (!PyArg_ParseTuple(args, "KLKK", &data, &n, &codes, &stream))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    nbytes = planes_huffman(AT(const uint8_t, data), n, AT(const uint32_t, codes), AT(uint8_t, stream));
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(nbytes);
}

/* What the two functions that follow have in common; ``others`` are addresses. */
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
    c->indices = AT(const int16_t, indices), c->books = AT(const uint8_t, books);
    c->row_classes = AT(const uint8_t, row_classes), c->column_classes = AT(const uint8_t, column_classes);
    c->n_books = n_books, c->entries = entries, c->n_symbols = n_symbols;
    return 1;
}

PyObject *py_count_codes(PyObject *self, PyObject *args)
{
    (void)self;
    Codes c;
    unsigned long long others[2];
    long long tile[2];
    int precision, instruction_set, found;
    if (!parse_codes(args, "LLLKKKKiLLLK|KLLii", &c, others, tile, &precision, &instruction_set))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = count_codes(&c, AT(int64_t, others[0]));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(found);
}

PyObject *py_rans_encode(PyObject *self, PyObject *args)
{
    (void)self;
    Codes c;
    unsigned long long others[2];
    long long tile[2], found;
    int precision, instruction_set;
    if (!parse_codes(args, "LLLKKKKiLLLKKLLii", &c, others, tile, &precision, &instruction_set))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = rans_encode(&c, tile[0], tile[1], AT(const uint32_t, others[0]), precision, AT(uint8_t, others[1]),
                        instruction_set);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(found);
}

PyObject *py_sum_errors(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long points, indices, books, factors, sums;
    long long n_rows, n_columns;
    if (!PyArg_ParseTuple(args, "LLKKKKK", &n_rows, &n_columns, &points, &indices, &books, &factors, &sums))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum_errors(n_rows, n_columns, AT(const float, points), AT(const int16_t, indices), AT(const uint8_t, books),
               AT(const float, factors), AT(float, sums));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_sum_values(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set, are_squared;
    unsigned long long values, sums;
    long long n;
    if (!PyArg_ParseTuple(args, "iKLiK", &instruction_set, &values, &n, &are_squared, &sums))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum_values(AT(const float, values), n, are_squared, AT(double, sums), instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_find_errors(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set;
    unsigned long long values, indices, books, errors;
    long long n;
    float step;
    if (!PyArg_ParseTuple(args, "iKLKKfK", &instruction_set, &values, &n, &indices, &books, &step, &errors))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    find_errors(AT(const float, values), n, AT(const int16_t, indices), AT(const uint8_t, books), step, AT(float, errors),
                instruction_set);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *py_largest_magnitude(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set;
    unsigned long long values;
    long long n;
    float found;
    if (!PyArg_ParseTuple(args, "iKL", &instruction_set, &values, &n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = largest_magnitude(AT(const float, values), n, instruction_set);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(found);
}

PyObject *py_count_indices(PyObject *self, PyObject *args)
{
    (void)self;
    int reach, is_outside;
    unsigned long long contexts, books, indices, counts;
    long long n, n_contexts;
    if (!PyArg_ParseTuple(args, "KKKLLiK", &contexts, &books, &indices, &n, &n_contexts, &reach, &counts))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    is_outside = count_indices(AT(const uint8_t, contexts), AT(const uint8_t, books), AT(const int32_t, indices), n,
                               n_contexts, reach, AT(int64_t, counts));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(is_outside);
}

PyObject *py_find_nearest(PyObject *self, PyObject *args)
{
    (void)self;
    int instruction_set, kind, has_failed;
    unsigned long long vectors, entries, codes, top;
    long long n, n_entries, dim;
    if (!PyArg_ParseTuple(args, "iKKLLLKKi", &instruction_set, &vectors, &entries, &n, &n_entries, &dim, &codes, &top,
                          &kind))
        return NULL;
    if (kind < OF_FLOATS || kind > WITH_MARGINS)
        return PyErr_SetString(PyExc_ValueError, "no such kind"), NULL;
    Py_BEGIN_ALLOW_THREADS
    has_failed = find_nearest(AT(const void, vectors), AT(const void, entries), n, n_entries, dim, AT(int64_t, codes),
                              AT(void, top), (NearestKind)kind, instruction_set);
    Py_END_ALLOW_THREADS
    return has_failed ? PyErr_NoMemory() : (Py_INCREF(Py_None), Py_None);
}
