/* stubborn: ignores SIGTERM, SIGINT and SIGHUP, and has a child in a session of its own that does the same. */
#include <signal.h>
#include <unistd.h>

int main(void)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (fork() == 0)
        setsid();
    for (;;)
        pause();
}
