/* churn MIB FILE: holds that much anonymous memory, then allocates, touches and frees one MiB for ever.
 *
 * FILE holds the number of rounds so far, so a test can tell whether it still gets on. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int mib = argc == 3 ? atoi(argv[1]) : 0;
    int file = mib > 0 ? open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
    if (file < 0) {
        fprintf(stderr, "usage: churn MIB FILE\n");
        return 2;
    }
    char *held = malloc((size_t)mib << 20);
    if (held == NULL)
        return 1;
    memset(held, 0x5a, (size_t)mib << 20);
    for (long rounds = 1;; rounds++) {
        char *page = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            return 1;
        memset(page, 0x5a, 1 << 20);
        munmap(page, 1 << 20);
        if (dprintf(file, "%ld\n", rounds) < 0 || lseek(file, 0, SEEK_SET) < 0)
            return 3;
        nanosleep(&(struct timespec){0, 10000000L}, NULL);
    }
}
