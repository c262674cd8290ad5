/* leak MIB_PER_SECOND FILE: touches that much new memory each second and never gives any back.
 *
 * Each SIGUSR1 ("please drop caches") and each SIGTERM adds a line with the memory held so far to FILE, so a test
 * can tell that it was asked before it was replaced. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t held_mib;
static const char *record;

static void note(int number)
{
    char line[80];
    int length = snprintf(line, sizeof line, "%s %ld %d\n", number == SIGUSR1 ? "asked" : "terminated", (long)getpid(),
                          (int)held_mib);
    int file = open(record, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file >= 0) {
        if (write(file, line, (size_t)length) < 0)
            _exit(3);
        close(file);
    }
    if (number == SIGTERM)
        _exit(0);
}

int main(int argc, char **argv)
{
    int rate = argc == 3 ? atoi(argv[1]) : 0;
    if (rate < 1) {
        fprintf(stderr, "usage: leak MIB_PER_SECOND FILE\n");
        return 2;
    }
    record = argv[2];
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    for (;;) {
        char *page = malloc(1 << 20);
        if (page == NULL)
            return 1;
        memset(page, 0x5a, 1 << 20);
        held_mib++;
        struct timespec nap = {0, 1000000000L / rate};
        if (rate == 1)
            nap = (struct timespec){1, 0};
        nanosleep(&nap, NULL);
    }
}
