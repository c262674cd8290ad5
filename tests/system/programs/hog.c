/* hog PERCENT: asks for PERCENT of one core, in slices of 20 ms, for ever.
 *
 * It burns by its own CPU clock and rests by the wall clock, so a hog that is held back falls behind and never
 * tries to catch up: its demand is the same in every second. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    double demand = argc == 2 ? atof(argv[1]) / 100 : 0;
    if (demand <= 0 || demand > 1) {
        fprintf(stderr, "usage: hog PERCENT (1 to 100)\n");
        return 2;
    }
    const double slice = 0.020;
    for (;;) {
        double begun = seconds(CLOCK_MONOTONIC);
        double until = seconds(CLOCK_PROCESS_CPUTIME_ID) + slice * demand;
        while (seconds(CLOCK_PROCESS_CPUTIME_ID) < until)
            for (volatile int i = 0; i < 2000; i++)
                ;
        double rest = begun + slice - seconds(CLOCK_MONOTONIC);
        if (rest > 0) {
            struct timespec nap = {0, (long)(rest * 1e9)};
            nanosleep(&nap, NULL);
        }
    }
}
