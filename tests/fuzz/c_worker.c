/* Decodes the files that come on stdin, each after its size (4 bytes, little-endian), in several ways by vqmcat, and prints
   a line for each way. */

#define main vqmcat_main
#include "vqmcat.c"
#undef main

#define MIB ((size_t)1 << 20)

int main(int argc, char **argv) {
    static const struct {
        enum mode mode;
        size_t piece;
        int is_exact;
    } ways[] = {{STREAM, 7, 0}, {MEMORY, (size_t)-1, 0}, {MEMORY, (size_t)-1, 1}, {INDEX, (size_t)-1, 0}, {ROWS, (size_t)-1, 1}};
    void *const arena = allocated(malloc(64 * MIB));
    unsigned char head[4];
    max_tensor_nbytes = argc > 1 ? (uint64_t)strtoul(argv[1], NULL, 10) : MIB;
    while (fread(head, 1, 4, stdin) == 4) {
        const size_t n = head[0] | head[1] << 8 | head[2] << 16 | (size_t)head[3] << 24;
        char *const bytes = (char *)allocated(malloc(n + 1));
        size_t i;
        if (fread(bytes, 1, n, stdin) != n) return 2;
        for (i = 0; i < sizeof ways / sizeof *ways; i++) {
            const job work = {arena, 64 * MIB, ways[i].mode, ways[i].is_exact};
            FILE *const file = n ? fmemopen(bytes, n, "rb") : fopen("/dev/null", "rb");
            if (!file) return 2;
            vqmcat(file, ways[i].piece, &work);
            fclose(file);
        }
        fflush(stdout);
        free(bytes);
    }
    free(arena);
    return 0;
}
