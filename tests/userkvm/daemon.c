/* A monitor that goes on in the background, for some seconds, when its command ended. */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>
#include <unistd.h>

int main(void) {
    int ends[2];
    char told;
    if (pipe(ends)) return 1;
    if (fork()) return read(ends[0], &told, 1) != 1;
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1), dup2(null, 2); /* nobody waits for what it says */
    int kvm = open("/dev/kvm", O_RDWR);
    if (ioctl(kvm, KVM_CREATE_VM, 0) < 0 || write(ends[1], "!", 1) != 1) return 1;
    sleep(4);
    return 0;
}
