/* wild LIMIT ALIVE: a tree that never stops forking anew. Each process, deaf to SIGTERM, lives for some tenths of a second and is followed
 * by one or two others in sessions of their own, each forked twice so that its parent is gone at once. No more than LIMIT live at a
 * time; the first one stays. ALIVE is a FIFO that every one of them holds open for writing: its reader sees the end of the last. */
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int *count;
static int limit;

static void rest(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void live(void);

/* One more, whose parent is gone before it does anything. */
static void follow(void)
{
    if (atomic_fetch_add(count, 1) >= limit) {
        atomic_fetch_sub(count, 1);
        return;
    }
    pid_t between = fork();
    if (between == 0) {
        setsid();
        pid_t child = fork();
        if (child == 0)
            live();
        if (child < 0)
            atomic_fetch_sub(count, 1);
        _exit(0);
    }
    if (between < 0)
        atomic_fetch_sub(count, 1);
    else
        waitpid(between, NULL, 0);
}

static void live(void)
{
    for (;;) {
        srand((unsigned)getpid() ^ (unsigned)clock());
        rest(50 + rand() % 400);
        follow();
        atomic_fetch_sub(count, 1);
        /* The place that has become free is taken by a second one: the tree grows to its limit and stays there. */
        follow();
        _exit(0);
    }
}

int main(int words, char **word)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    if (words != 3 || open(word[2], O_WRONLY) < 0)
        return 1;
    limit = atoi(word[1]);
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count == MAP_FAILED)
        return 1;
    for (;;) {
        follow();
        rest(20);
    }
}
