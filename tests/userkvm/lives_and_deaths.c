/* VMs that come and go, descriptors that are duplicated, and a child process. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int entries(const char *path) {
    int count = 0;
    DIR *folder = opendir(path);
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

static int mappings(void) {
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    for (int c; (c = getc(maps)) != EOF;) count += c == '\n';
    fclose(maps);
    return count;
}

static int ends; /* how often a life ended in one way or the other */

static void life(int kvm) {
    static uint8_t *rom;
    if (!rom) rom = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_userspace_memory_region slot = {0, 0, 0xffff0000u, 65536, (uintptr_t)rom};
    rom[0xfff0] = 0xf4; /* hlt */
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (ioctl(cpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_HLT) puts("no hlt");
    munmap(run, 12288);
    close(vm); /* the vCPU keeps it */
    int other = open("/dev/null", O_RDWR);
    if (++ends % 4 == 1) dup2(other, cpu);
    if (ends % 4 == 2) dup3(other, cpu, O_CLOEXEC);
    if (ends % 4 == 3) close(cpu), dup(other); /* gets the lowest number: that of the vCPU */
    if (ends % 4 && (ioctl(cpu, KVM_RUN, 0) != -1 || errno != ENOTTY)) puts("a file of another kind runs a guest");
    close(cpu), close(other);
}

int main(int argc, char **argv) {
    int lives = argc > 1 ? atoi(argv[1]) : 10, kvm = open("/dev/kvm", O_RDWR), copy = dup(kvm);
    close(kvm);
    printf("version of the copy %d\n", ioctl(copy, KVM_GET_API_VERSION, 0));
    for (int i = 0; i < 3; i++) life(copy);
    int files = entries("/proc/self/fd"), threads = entries("/proc/self/task"), maps = mappings();
    for (int i = 0; i < lives; i++) life(copy);
    printf("more descriptors %d threads %d mappings %s\n", entries("/proc/self/fd") - files,
           entries("/proc/self/task") - threads, mappings() - maps < 16 ? "few" : "many");
    fflush(stdout);
    if (!fork()) {
        int result = ioctl(copy, KVM_GET_API_VERSION, 0);
        printf("child %d %s\n", result, strerror(errno));
        fflush(stdout);
        _exit(0);
    }
    wait(0);
    return 0;
}
