/* thrash FILE [PAUSE_MS]: reads pages of FILE in a random order, for ever, through a mapping: a working set as large as the file. */
#include <fcntl.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct stat found;
    int file = argc >= 2 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &found) < 0) {
        fprintf(stderr, "usage: thrash FILE [PAUSE_MS]\n");
        return 2;
    }
    uint64_t pages = (uint64_t)found.st_size / 4096, seed = 88172645463325252u;
    volatile const char *map = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED || pages == 0)
        return 1;
    /* Nothing is read ahead: each page is wanted for itself. */
    madvise((void *)map, (size_t)found.st_size, MADV_RANDOM);
    long pause = argc >= 3 ? atol(argv[2]) : 0;
    uint64_t sum = 0;
    for (uint64_t count = 0;; count++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        sum += (uint64_t)map[seed % pages * 4096];
        if (pause > 0 && count % 1024 == 0) {
            struct timespec nap = {pause / 1000, pause % 1000 * 1000000};
            nanosleep(&nap, NULL);
        }
    }
    return (int)sum;
}
