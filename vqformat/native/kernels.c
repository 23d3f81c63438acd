/* The extension module vqformat.native._kernels: kernels in C for what NumPy does slowly. Most of their bindings are in
   decoding.c and encoding.c. */

#include "bindings.h"
#include "crc.h"
#include "trellis.h"

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
    if (PyBytes_Check(array))
        return PyLong_FromVoidPtr(PyBytes_AsString(array));
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

static PyObject *py_crc32(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long bytes;
    long long n;
    unsigned int crc;
    if (!PyArg_ParseTuple(args, "KLI", &bytes, &n, &crc))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    crc = crc_of(AT(const uint8_t, bytes), n, crc);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *py_has_crc32(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyBool_FromLong(has_crc32());
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
    {"address", py_address, METH_O, "The address of bytes, or of the values of an array, which is C-contiguous; 0 for None."},
    {"instruction_sets", py_instruction_sets, METH_NOARGS, "Which of scalar, AVX2, AVX-512 the processor has."},
    {"crc32", py_crc32, METH_VARARGS, "The CRC-32 of bytes; see crc.h."},
    {"has_crc32", py_has_crc32, METH_NOARGS, "Whether the processor has what it needs."},

    /* decoding.c */
    {"trellis_decode", py_trellis_decode, METH_VARARGS, "Decode a block of a trellis stage; see trellis.h."},
    {"trellis_slots", py_trellis_slots, METH_VARARGS, "Fill look-up tables by slot; see trellis.h."},
    {"codebook_decode", py_codebook_decode, METH_VARARGS, "Decode a block of a codebook stage; see codebook.h."},
    {"lowrank_decode", py_lowrank_decode, METH_VARARGS, "Compute a block of a low-rank stage; see lowrank.h."},
    {"last_place", py_last_place, METH_VARARGS, "The largest place; see scatter.h."},
    {"scatter", py_scatter, METH_VARARGS, "Put the values of a block in their places; see scatter.h."},

    /* encoding.c */
    {"viterbi_search", py_viterbi_search, METH_VARARGS, "Find the paths with the least cost; see viterbi.h."},
    {"feedback_quantize", py_feedback_quantize, METH_VARARGS, "Quantize rows with error feedback; see feedback.h."},
    {"planes_split", py_planes_split, METH_VARARGS, "Split words into byte planes; see planes.h."},
    {"planes_split_floats", py_planes_split_floats, METH_VARARGS, "Split codes of bfloat16 into planes; see planes.h."},
    {"planes_code_lengths", py_planes_code_lengths, METH_VARARGS, "Bits of Huffman codes; see planes.h."},
    {"planes_count", py_planes_count, METH_VARARGS, "Count the values of bytes; see planes.h."},
    {"planes_huffman", py_planes_huffman, METH_VARARGS, "Write a Huffman stream; see planes.h."},
    {"count_codes", py_count_codes, METH_VARARGS, "Count codes; see entropy.h."},
    {"rans_encode", py_rans_encode, METH_VARARGS, "Encode a block of codes; see entropy.h."},
    {"sum_errors", py_sum_errors, METH_VARARGS, "Sum the errors of columns; see arrays.h."},
    {"sum_values", py_sum_values, METH_VARARGS, "Sum values or squares; see arrays.h."},
    {"find_errors", py_find_errors, METH_VARARGS, "Errors at grid points; see arrays.h."},
    {"largest_magnitude", py_largest_magnitude, METH_VARARGS, "The largest magnitude; see arrays.h."},
    {"count_indices", py_count_indices, METH_VARARGS, "Count indices by context; see arrays.h."},
    {"find_nearest", py_find_nearest, METH_VARARGS, "Find the nearest entries; see nearest.h."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels in C.", 0, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    trellis_start();
    return PyModule_Create(&MODULE);
}
