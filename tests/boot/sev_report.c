/* First program of an SNP guest: asks the firmware for a report (Linux Documentation/virt/coco/sev-guest.rst). */
#include <fcntl.h>
#include <linux/sev-guest.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void load_modules(void)
{
    char name[] = "/modules/0.ko";
    for (int fd; (fd = open(name, O_RDONLY)) >= 0; close(fd), ++name[9])
        if (syscall(SYS_finit_module, fd, "", 0))
            perror(name);
}

static void ask(int device, int vmpl)
{
    static unsigned char answer[4000];
    struct snp_report_req request = {.vmpl = vmpl};
    memcpy(request.user_data, "data of the guest", 17);
    struct snp_guest_request_ioctl call = {
        .msg_version = 1, .req_data = (unsigned long)&request, .resp_data = (unsigned long)answer};
    if (ioctl(device, SNP_GET_REPORT, &call)) {
        printf("REFUSED %#llx\n", call.exitinfo2);
        return;
    }
    unsigned size = *(unsigned *)(answer + 4);
    printf("REPORT %u ", *(unsigned *)answer);
    for (unsigned at = 0; at < size; ++at)
        printf("%02x", answer[32 + at]);
    printf("\n");
}

int main(void)
{
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    load_modules();
    int device = open("/dev/sev-guest", O_RDWR);
    if (device < 0)
        perror("/dev/sev-guest");
    ask(device, 0);
    ask(device, 3);
    fflush(stdout);
    usleep(100000);
    reboot(RB_POWER_OFF);
    return 1;
}
