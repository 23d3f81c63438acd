/* Decodes damaged files with the decoder in C, sequentially and by the index. Nothing is to come of it but a refusal: the
   sanitizers and the clock tell. Compiled with FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION, as libFuzzer's builds are, the
   decoder lets a false CRC-32 pass, so that changes get beyond it.

   With libFuzzer or AFL++ it is a target:
       clang -g -O1 -fsanitize=fuzzer,address,undefined -DVQM_TEST_ARENA -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
           -ffp-contract=off -Ivqformat/native tests/fuzz/c_fuzzer.c vqformat/native/vqm.c -lzstd -o c_fuzzer
       ./c_fuzzer -timeout=2 -max_len=4096 CORPUS fixtures/valid fixtures/invalid
   With -DWITHOUT_LIBFUZZER it is a program: it cuts each FILE short at every byte, changes every byte, and prints how many
   of these were read. */

#include "vqm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA = 1 << 18, MOST = 1 << 18 };

static const vqm_options options = {MOST, 1 << 20, 0};
static uint8_t *arena;

static vqm_status read_all(vqm_status status, vqm *file, int by_rows) {
    const vqm_tensor *t;
    while (status == VQM_OK && (status = vqm_next(file, &t)) == VQM_OK) {
        uint8_t *const out = malloc(t->nbytes <= MOST ? (size_t)t->nbytes : 1);
        if (t->nbytes > MOST) status = VQM_LIMIT;
        else if (t->target && !by_rows) status = VQM_OK;
        else if (by_rows && t->rank && t->dims[0]) status = vqm_rows(file, t->dims[0] / 2, 1, out, t->nbytes);
        else status = vqm_decode(file, out, t->nbytes);
        free(out);
    }
    return status;
}

static int decodes(const uint8_t *bytes, size_t n) {
    uint8_t *const copy = malloc(n ? n : 1); /* of this size, so that a read behind its end is seen */
    vqm_source source;
    vqm_status status, by_index;
    vqm *file;
    if (!arena) arena = malloc(ARENA);
    if (n) memcpy(copy, bytes, n);
    source = vqm_memory(copy, n);
    status = vqm_open(&file, &source, &options, arena, ARENA);
    status = read_all(status, file, 0);
    by_index = vqm_open_index(&file, &source, &options, arena, ARENA);
    by_index = read_all(by_index, file, 1);
    free(copy);
    return (status == VQM_END) + (by_index == VQM_END);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    decodes(bytes, n);
    return 0;
}

#ifdef WITHOUT_LIBFUZZER
int main(int argc, char **argv) {
    static const uint8_t changes[] = {0x01, 0x80, 0xFF, 0x10};
    long n_read = 0, n_tried = 0;
    int k;
    for (k = 1; k < argc; k++) {
        static uint8_t bytes[1 << 16];
        FILE *const file = fopen(argv[k], "rb");
        size_t n, i;
        if (!file) return 2;
        n = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        for (i = 0; i < n; i++) {
            const uint8_t was = bytes[i];
            n_read += decodes(bytes, i);
            bytes[i] ^= changes[i % sizeof changes];
            n_read += decodes(bytes, n);
            bytes[i] = was;
            n_tried += 4;
        }
    }
    free(arena);
    printf("%ld of %ld\n", n_read, n_tried);
    return 0;
}
#endif
