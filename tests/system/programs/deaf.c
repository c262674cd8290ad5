/* deaf ALIVE: ignores SIGTERM, SIGINT and SIGHUP, as do a child, one in a session of its own, and one forked twice into another. ALIVE is a
 * FIFO that every one of them holds open for writing: its reader sees the end of the last. */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

static void stay(void)
{
    for (;;)
        pause();
}

int main(int words, char **word)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (words != 2 || open(word[1], O_WRONLY) < 0)
        return 1;
    if (fork() == 0)
        stay();
    if (fork() == 0) {
        setsid();
        stay();
    }
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            stay();
        _exit(0);
    }
    stay();
}
