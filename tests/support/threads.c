/* First program of a guest with several CPUs: threads on all of them that count by atomic operations, under a mutex and by
   turns (futex(2), sched_setaffinity(2)). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 16, ROUNDS = 8000, TURNS = 100, MAPPINGS = 60 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t together;
static atomic_long counted;
static long under_mutex;
static volatile int turn;
static volatile int where[MOST];
static int failures, cpus;

static void check(const char *name, int good)
{
    printf("%s: %s\n", name, good ? "good" : "BAD");
    failures += !good;
}

static void *work(void *argument)
{
    long number = (long)argument;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(number, &only);
    sched_setaffinity(0, sizeof only, &only);
    pthread_barrier_wait(&together);
    where[number] = sched_getcpu();
    for (int i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&counted, 1);
        long seen = atomic_load(&counted);
        while (!atomic_compare_exchange_weak(&counted, &seen, seen + 2)) continue;
    }
    for (int i = 0; i < ROUNDS / 10; i++) {
        pthread_mutex_lock(&mutex);
        under_mutex++;
        pthread_mutex_unlock(&mutex);
    }
    for (int i = 0; i < TURNS; i++) {
        pthread_mutex_lock(&mutex);
        while (turn % cpus != number) pthread_cond_wait(&changed, &mutex);
        turn++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&mutex);
    }
    for (int i = 0; i < MAPPINGS; i++) { /* each needs the other CPUs to forget its address */
        char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = 1;
        munmap(page, 4096);
    }
    return 0;
}

static void run_threads(void)
{
    pthread_t threads[MOST];
    pthread_barrier_init(&together, 0, cpus);
    for (long i = 0; i < cpus; i++) pthread_create(&threads[i], 0, work, (void *)i);
    for (int i = 0; i < cpus; i++) pthread_join(threads[i], 0);
    int apart = 1;
    for (int i = 0; i < cpus; i++) apart &= where[i] == i;
    check("each thread ran on its own CPU", apart);
    check("atomic sum", atomic_load(&counted) == 3L * ROUNDS * cpus);
    check("sum under the mutex", under_mutex == ROUNDS / 10L * cpus);
    check("turns", turn == TURNS * cpus);
}

int main(void)
{
    setvbuf(stdout, 0, _IONBF, 0);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, 0);
    mount("sysfs", "/sys", "sysfs", 0, 0);
    cpus = sysconf(_SC_NPROCESSORS_ONLN);
    printf("CPUs online: %d of %ld\n", cpus, sysconf(_SC_NPROCESSORS_CONF));
    if (cpus <= MOST) run_threads();
    printf(failures ? "SOMETHING IS BAD\n" : "ALL IS WELL\n");
    usleep(50000);
    reboot(RB_POWER_OFF);
}
