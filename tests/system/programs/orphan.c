/* orphan COUNT CODE: leaves COUNT grandchildren without a parent, each of which ends at once; sleeps until the
 * process number 1 of its namespace has reaped them (none of them is a zombie any more), then exits with CODE.
 * Exits with 99 when they are still zombies after ten seconds. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int count = argc == 3 ? atoi(argv[1]) : 0;
    if (count < 1) {
        fprintf(stderr, "usage: orphan COUNT CODE\n");
        return 2;
    }
    int numbers[2];
    if (pipe(numbers) != 0)
        return 98;
    for (int i = 0; i < count; i++) {
        pid_t parent = fork();
        if (parent == 0) {
            pid_t self = getpid();
            pid_t grandchild = fork();
            if (grandchild == 0) {
                /* Wait until the parent is gone: the end of this process is then its new parent's business. */
                while (getppid() == self) {
                    struct timespec nap = {0, 1000000};
                    nanosleep(&nap, NULL);
                }
                _exit(7);
            }
            if (write(numbers[1], &grandchild, sizeof grandchild) < 0)
                _exit(97);
            _exit(0);
        }
        waitpid(parent, NULL, 0);
    }
    for (int i = 0; i < count; i++) {
        pid_t grandchild;
        if (read(numbers[0], &grandchild, sizeof grandchild) != sizeof grandchild)
            return 98;
        int tries = 0;
        /* Signal 0 finds a zombie, and nothing once it has been reaped. */
        while (kill(grandchild, 0) == 0 || errno != ESRCH) {
            if (++tries > 10000)
                return 99;
            struct timespec nap = {0, 1000000};
            nanosleep(&nap, NULL);
        }
    }
    return atoi(argv[2]);
}
