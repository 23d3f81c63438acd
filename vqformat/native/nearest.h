/* The codebook entry with the highest score for each vector (the twin is vqformat/encode/methods/nearest.py). */

#ifndef VQFORMAT_NEAREST_H
#define VQFORMAT_NEAREST_H

#include <stdint.h>

typedef enum { OF_FLOATS, OF_DOUBLES, WITH_MARGINS } NearestKind;

/* The score of an entry is the sum of the products of the components, plus the last component of the entry. All
   partial sums are integers that the type holds exactly, so the order of the additions does not matter. Of equal scores
   the first entry counts.

   ``vectors`` is (n, dim + 1), its last component is not used; ``entries`` is (n_entries, dim + 1), at least one; they
   and ``top``, the highest scores, are of float or of double. ``codes`` and ``top`` have n numbers.

   WITH_MARGINS: of floats, ``vectors`` is (n, dim), scores are rounded, and ``top`` has by how much the highest one
   exceeds the next.

   Only for AVX2 and AVX-512: otherwise BLAS is faster. Returns 0, or 1 if there is no memory. */
int find_nearest(const void *vectors, const void *entries, int64_t n, int64_t n_entries, int64_t dim, int64_t *codes,
                 void *top, NearestKind kind, int instruction_set);

#endif
