/* What Python calls. Arrays come as addresses; the modules of vqformat/native have checked their dtypes and lengths.
   Kernels work without the interpreter lock. The limited API of CPython 3.10 is used, so one build serves all later
   versions. */

#ifndef VQFORMAT_BINDINGS_H
#define VQFORMAT_BINDINGS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <stdint.h>

/* The array of this type at an address, which came as an integer. */
#define AT(type, address) ((type *)(uintptr_t)(address))

/* decoding.c */
PyObject *py_trellis_decode(PyObject *self, PyObject *args);
PyObject *py_trellis_slots(PyObject *self, PyObject *args);
PyObject *py_codebook_decode(PyObject *self, PyObject *args);
PyObject *py_lowrank_decode(PyObject *self, PyObject *args);
PyObject *py_last_place(PyObject *self, PyObject *args);
PyObject *py_scatter(PyObject *self, PyObject *args);

/* encoding.c */
PyObject *py_viterbi_search(PyObject *self, PyObject *args);
PyObject *py_feedback_quantize(PyObject *self, PyObject *args);
PyObject *py_planes_split(PyObject *self, PyObject *args);
PyObject *py_planes_split_floats(PyObject *self, PyObject *args);
PyObject *py_planes_code_lengths(PyObject *self, PyObject *args);
PyObject *py_planes_count(PyObject *self, PyObject *args);
PyObject *py_planes_huffman(PyObject *self, PyObject *args);
PyObject *py_count_codes(PyObject *self, PyObject *args);
PyObject *py_rans_encode(PyObject *self, PyObject *args);
PyObject *py_sum_errors(PyObject *self, PyObject *args);
PyObject *py_sum_values(PyObject *self, PyObject *args);
PyObject *py_find_errors(PyObject *self, PyObject *args);
PyObject *py_largest_magnitude(PyObject *self, PyObject *args);
PyObject *py_count_indices(PyObject *self, PyObject *args);
PyObject *py_find_nearest(PyObject *self, PyObject *args);

#endif
